"""Parameters that several operators read on different grids, such as a table that is a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fxquant import ops

if TYPE_CHECKING:
    from torch import fx

    from fxquant.placement.plan import WeightPlan
    from fxquant.targets import OperatorRule


def shared_channels(
    gm: fx.GraphModule, weights: Mapping[fx.Node, WeightPlan], rules: Mapping[fx.Node, OperatorRule]
) -> dict[fx.Node, fx.Node]:
    """Consumers with one grid for a tensor that can take the grid per channel of another consumer.

    A parameter on two grids is stored twice, and is two different weights. On the finer one it
    loses the least.

    Args:
        gm: prepared graph.
        weights: the planned grids.
        rules: how the target computes the operators.

    Returns:
        Consumer -> the consumer whose grid it takes. Grids that differ in more than the channels,
        and consumers whose rule does not allow it, stay as they are.
    """
    fine: dict[tuple[object, ...], fx.Node] = {}
    for node, plan in weights.items():
        if plan.shape:
            fine.setdefault(_key(gm, node, plan), node)
    return {
        node: fine[key]
        for node, plan in weights.items()
        if not plan.shape and rules[node].shares_channels
        if (key := _key(gm, node, plan)) in fine
    }


def _key(gm: fx.GraphModule, node: fx.Node, plan: WeightPlan) -> tuple[object, ...]:
    weight = ops.arguments(node, gm)["weight"]
    return id(weight), plan.bitwidth, plan.signed, plan.symmetric
