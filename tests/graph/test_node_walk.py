"""A walk computes what the graph computes, in order, and frees values after their last use."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.graph.node_walk import Environment, last_uses, node_values, output_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, factor: float = 2.0) -> dict[str, Tensor]:
        y = self.layer(x)
        return {"sum": torch.relu(y) + x * factor}


def test_the_output_is_that_of_the_graph_and_nodes_come_in_order() -> None:
    gm = fx.symbolic_trace(Net())
    x = torch.randn(3, 4)
    seen = [(node.name, node.op) for node, _ in node_values(Environment(gm), (x, 3.0))]
    assert seen == [(node.name, node.op) for node in gm.graph.nodes]
    for given in ((x, 3.0), (x,)):
        assert torch.equal(output_of(Environment(gm), given)["sum"], gm(*given)["sum"])


def test_a_value_is_freed_after_its_last_use() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    alive: dict[str, weakref.ref[Tensor]] = {}
    for node, value in node_values(Environment(gm), (torch.randn(3, 4),)):
        if node.op == "call_module":  # the caller holds the input, and the output is the last one
            alive[node.name] = weakref.ref(value)
        del value
        gc.collect()
        # an operand is kept until its consumer has been looked at
        assert sum(r() is not None for r in alive.values()) <= 2
    assert {n.name for freed in last_uses(list(gm.graph.nodes)).values() for n in freed} == {
        n.name for n in gm.graph.nodes if n.op != "output"
    }


def test_an_environment_computes_nodes_in_another_way() -> None:
    class Doubling(Environment):
        def compute(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = super().compute(node, args, kwargs)
            return value * 2 if node.op == "call_module" else value

    gm = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    x = torch.randn(3, 4)
    assert torch.equal(output_of(Doubling(gm), (x,)), gm(x) * 4)
