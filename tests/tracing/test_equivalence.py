"""The proof of a prepared graph, and the node where a wrong one begins to differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.graph.pass_infra import Fact, set_state
from fxquant.passes import PREPARE
from fxquant.tracing.equivalence import few_rows, first_difference, prove
from fxquant.tracing.record import Recording, record

X = torch.randn(4, 3)


class Net(nn.Module):
    """Three layers, one of them functional."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) + 1)  # type: ignore[no-any-return]


def prepared(net: nn.Module, *args: Any) -> Recording:
    recording = record(net, args)
    set_state(recording.graph_module, facts=frozenset({Fact.RECORDED}))
    for step in PREPARE:
        step(recording.graph_module)
    return recording


def test_an_equal_graph_holds_everywhere() -> None:
    net = Net().eval()
    proof = prove(prepared(net, X), net, (X,), {})
    assert (proof.same, proof.values, proof.batch, proof.why) == (True, True, True, "")


def test_the_first_node_that_differs_is_named() -> None:
    net = Net().eval()
    recording = prepared(net, X)
    gm = recording.graph_module
    gm.set_submodule("add", nn.Identity())
    relu = next(n for n in gm.graph.nodes if n.target == "add")
    relu.args = relu.args[:1]
    gm.recompile()
    proof = prove(recording, net, (X,), {})
    assert not proof.same
    assert isinstance(proof.at, fx.Node)
    assert proof.at.name == "add"
    assert "largest difference" in proof.why


def test_a_node_that_raises_is_named() -> None:
    net = Net().eval()
    gm = prepared(net, X).graph_module
    gm.set_submodule("relu", nn.Linear(7, 7))
    at = first_difference(gm, net, (X,), {})
    assert at is not None
    assert at.name == "relu"
    assert first_difference(prepared(net, X).graph_module, net, (X,), {}) is None


def test_a_graph_for_one_batch_size() -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([row * (i + 1) for i, row in enumerate(x)])

    net = Loop().eval()
    proof = prove(prepared(net, X), net, (X,), {})
    assert proof.same
    assert proof.values
    assert not proof.batch


def test_a_model_for_one_batch_size_is_no_fault_of_the_graph() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w

    net = Fixed().eval()
    assert prove(prepared(net, X), net, (X,), {}).batch


def test_few_rows_are_cut_from_what_has_the_batch() -> None:
    args, kwargs = few_rows((X, torch.ones(5)), {"y": torch.ones(4, 1), "z": 3})
    assert [tuple(t.shape) for t in args] == [(2, 3), (5,)]
    assert tuple(kwargs["y"].shape) == (2, 1)
    assert kwargs["z"] == 3
    assert few_rows((torch.ones(3, 1),), {})[0][0].shape == (1, 1), "not 3 after one more"
