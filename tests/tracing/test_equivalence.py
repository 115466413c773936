"""The proof of a prepared graph, and the node where a wrong one begins to differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxquant.errors import TraceError
from fxquant.graph.pass_infra import Fact, set_state
from fxquant.passes import PREPARE
from fxquant.prepare import prepare_model
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


class Noted(Net):
    """Notes the rows of every run."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__()
        self.note = rows.append

    def forward(self, x: Tensor) -> Tensor:
        self.note(x.untyped_storage().nbytes() // 12)
        return super().forward(x)


@pytest.mark.parametrize(("batch", "other"), [(1, 2), (2, 1), (3, 2), (4, 3), (9, 3)])
def test_most_models_run_twice(batch: int, other: int) -> None:
    """To be recorded, and at another batch size."""
    rows: list[int] = []
    prepare_model(Noted(rows).eval(), torch.randn(batch, 3))
    assert rows == [batch, other]


def test_two_rows_become_three_where_python_decided_on_something() -> None:
    rows: list[int] = []

    class Decided(Noted):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if len(x) > 1 else x

    assert prepare_model(Decided(rows).eval(), torch.randn(2, 3))(X[:3]).shape == (3, 3)
    assert rows == [2, 3]


class Counting(Net):
    """Computes with the number of its runs."""

    def __init__(self, used: int) -> None:
        super().__init__()
        self.runs = [0]
        self.used = used

    def forward(self, x: Tensor) -> Tensor:
        self.runs[0] += 1
        return super().forward(x) * (1 + self.used * self.runs[0])


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_what_changes_from_run_to_run_is_found(batch: int) -> None:
    with pytest.raises(TraceError, match="FXQ116"):
        prepare_model(Counting(1).eval(), torch.randn(batch, 3))
    assert prepare_model(Counting(0).eval(), torch.randn(batch, 3))(X).shape == (4, 3)


def test_random_numbers_of_torch_are_compared_from_one_seed() -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.dropout(x, 0.5))

    net = Noisy().eval()
    proof = prove(prepared(net, X), net, (X,), {})
    assert (proof.same, proof.values, proof.batch) == (True, True, True)


def test_what_only_a_recorder_sees_is_no_proof() -> None:
    class Watched(Net):
        """Another network while somebody looks."""

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y * 2 if torch.is_grad_enabled() else y

    with pytest.raises(TraceError, match=r"FXQ121.*dummy input"):
        prepare_model(Watched().eval(), X)
