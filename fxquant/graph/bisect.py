"""Finding the node where a graph begins to compute something else than its model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxquant.graph.structure import fresh_inputs
from fxquant.graph.trace import record
from fxquant.graph.verify_replay import difference

if TYPE_CHECKING:
    from fxquant.graph.leaves import Leaves


class _Values(fx.Interpreter):
    """Runs a graph and keeps a copy of every value."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and copy its result, which later nodes may write into."""
        value = super().run_node(n)
        self.values[n.name] = fresh_inputs(value)
        return value


def values_of(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The value of every node that was reached, by name."""
    runner = _Values(gm)
    holders = [str(n.target) for n in gm.graph.nodes if n.op == "placeholder"]
    ordered = [*args, *(kwargs[name] for name in holders[len(args) :] if name in kwargs)]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            runner.run(*fresh_inputs(ordered))
        except Exception:  # the node that raised is the one after the last value
            return runner.values
    return runner.values


def first_difference(
    gm: fx.GraphModule,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    leaves: Leaves | None = None,
) -> fx.Node | None:
    """The first node of a prepared graph whose value is not what the model computes there.

    The model is recorded anew on these inputs: nodes keep their names through preparation, so both
    graphs can be compared node by node. None if they agree, or took different ways from the start.
    """
    theirs = values_of(record(model, args, kwargs, leaves=leaves).graph_module, args, kwargs)
    ours = values_of(gm, args, kwargs)
    nodes: list[fx.Node] = list(gm.graph.nodes)
    for node in nodes:
        if node.op in ("placeholder", "output", "get_attr") or node.name not in theirs:
            continue
        if node.name not in ours or difference(ours[node.name], theirs[node.name]):
            return node
    return None
