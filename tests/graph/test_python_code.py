"""Parts of models may be called anything that PyTorch lets them be called."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, prepare_model
from fxquant.graph.python_code import PathCodeGen
from fxquant.graph.recorded_module import YIELDING
from fxquant.tracing.record import record

if TYPE_CHECKING:
    from pathlib import Path

X = torch.randn(3, 4)
NAMES = [
    "class", "from", "lambda", "None", "True", "import", "async", "match", "case", "type_", "self",
    "_", "__x", "0", "1st", "a b", "a-b", 'a"b', "it's", "both'\"", "\\", '\\"', "\\x41", "\\n",
    "\n", "\t", "{x}", "{", "%s", "日本", "é", "ﬁ", "😀", "#", ")", "; import os", "f", "torch",
]  # fmt: skip


class Heads(nn.Module):
    """One head and one gain a name."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({n: nn.Linear(4, 3) for n in names})
        self.gains = nn.ParameterDict({n: nn.Parameter(torch.rand(3)) for n in names})

    def forward(self, x: Tensor) -> list[Tensor]:
        return [torch.relu(h(x)) * self.gains[n] for n, h in self.heads.items()]


def test_every_name_is_read_as_it_is() -> None:
    net = Heads(*NAMES, "A", "fi").eval()
    gm = prepare_model(net, X)
    assert all(torch.equal(a, b) for a, b in zip(gm(X), net(X), strict=True))
    assert list(gm.state_dict()) == list(net.state_dict())
    again = copy.deepcopy(gm)
    assert all(torch.equal(a, b) for a, b in zip(again(X), net(X), strict=True))
    sum(y.sum() for y in gm(X)).backward()
    assert all(p.grad is not None for p in gm.parameters())


@pytest.mark.parametrize("names", [("class", "box"), ('a"b', "it's"), ("\\x41", "A", "日本")])
def test_such_models_are_exported(names: tuple[str, ...], tmp_path: Path) -> None:
    net = Heads(*names).eval()
    sim = QuantizationSimModel(prepare_model(net, X), X)
    sim.compute_encodings([X])
    assert sim.export(tmp_path, "net")


def test_nodes_keep_their_targets() -> None:
    gm = record(Heads("class"), (X,)).graph_module
    before = [n.target for n in gm.graph.nodes]
    assert isinstance(gm.graph._codegen, PathCodeGen)
    gm.recompile()
    assert [n.target for n in gm.graph.nodes] == before
    assert all(type(n.target) is str for n in gm.graph.nodes if n.op == "call_module")


@pytest.mark.parametrize("name", sorted(YIELDING))
def test_a_part_may_be_called_as_a_method_of_graphs_is(name: str, tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Sequential(nn.Linear(4, 4)))
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            return self.head(torch.relu(getattr(self, name)(x)))

    net = Net().eval()
    gm = prepare_model(net, X)
    assert torch.equal(gm(X), net(X))
    assert list(gm.state_dict()) == list(net.state_dict())
    sim = QuantizationSimModel(gm, X)
    sim.compute_encodings([X])
    assert sim.export(tmp_path, "net")


def test_parameters_and_buffers_called_code() -> None:
    class Net(nn.Module):
        code: Tensor

        def __init__(self, *, learn: bool) -> None:
            super().__init__()
            if learn:
                self.code = nn.Parameter(torch.rand(4))
            else:
                self.register_buffer("code", torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.code

    for learn in (True, False):
        net = Net(learn=learn)
        assert torch.equal(prepare_model(net, X)(X), net(X))


def test_a_graph_without_such_a_part_has_its_code() -> None:
    gm = record(nn.Sequential(nn.ReLU()), (X,)).graph_module
    assert "def forward" in gm.code
    assert "def forward" in gm.print_readable(print_output=False)
