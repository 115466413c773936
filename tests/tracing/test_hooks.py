"""Hooks of leaves: what changes a value is recorded, what looks stays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxquant import prepare_model
from fxquant.nn.functional import Multiply

X = torch.randn(2, 4)


def calls(gm: nn.Module, kind: type[nn.Module]) -> int:
    """How many modules of a class a graph calls."""
    nodes = [n for n in gm.graph.nodes if n.op == "call_module"]  # type: ignore[union-attr]
    return sum(isinstance(gm.get_submodule(str(n.target)), kind) for n in nodes)


def test_a_hook_that_changes_the_result_becomes_nodes() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    net[0].register_forward_hook(lambda module, args, result: result * 2)
    gm = prepare_model(net, X)
    assert torch.equal(gm(X), net(X))
    assert [str(n.target) for n in gm.graph.nodes if n.op == "call_module"] == ["0", "mul", "1"]
    assert not gm.get_submodule("0")._forward_hooks
    assert len(net[0]._forward_hooks) == 1


def test_a_hook_that_writes_into_the_result_becomes_nodes() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()

    def halve(module: nn.Module, args: Any, result: Tensor) -> None:
        result.mul_(0.5)

    net[0].register_forward_hook(halve)
    gm = prepare_model(net, X)
    assert torch.equal(gm(X), net(X))
    assert calls(gm, Multiply) == 1


def test_hooks_that_look_stay_and_leave_no_trace() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        seen.append(result.detach().abs().max())
        return result

    net[0].register_forward_hook(look)
    net[1].register_forward_pre_hook(lambda module, args: args)
    gm = prepare_model(net, X)
    assert [str(n.target) for n in gm.graph.nodes if n.op == "call_module"] == ["0", "1"]
    before = len(seen)
    gm(X)
    assert len(seen) == before + 1
    assert calls(gm, nn.Linear) == 1


def test_what_a_hook_keeps_may_be_used_later() -> None:
    class Tapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.taps: dict[str, Tensor] = {}
            self.first.register_forward_hook(self.tap)

        def tap(self, module: nn.Module, args: Any, result: Tensor) -> None:
            self.taps["first"] = result * 3

        def forward(self, x: Tensor) -> Any:
            return self.second(self.first(x)) + self.taps["first"]

    net = Tapped().eval()
    gm = prepare_model(net, X)
    other = torch.randn(3, 4)
    assert torch.equal(gm(other), net(other))
