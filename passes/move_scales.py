"""Numbers that scale an operand of a product, behind the product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from fxquant.graph.pass_infra import Fact, Pass
from fxquant.placement.dataflow import is_float_spec, moves_values
from fxquant.placement.product_weights import PRODUCTS
from fxquant.placement.regions import find_regions

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter
    from fxquant.placement.regions import Regions


@dataclass(frozen=True)
class MoveScales(Pass):
    """Multiply by a number behind a product of activations instead of before it.

    Before: `matmul(mul(q, 0.125), k)`.
    After:  `mul(matmul(q, k), 0.125)`.

    Why: the scaled operand would have a grid of its own, so its integers would become floats, be
    multiplied and become integers again. Behind the product the number goes into a step of the
    integer kernel and costs nothing. The sums are rounded differently unless the number is a power
    of two, so it is done for the simulation only, like taking attention apart.
    """

    needs = frozenset({Fact.MODULES_ONLY})

    def run(self, rw: Rewriter) -> None:
        """Look at both operands of every product."""
        regions = find_regions(rw.gm)
        for node in rw.nodes:
            row = rw.op(node)
            if row is None or row.name not in PRODUCTS:
                continue
            given = rw.arguments(node)
            for operand in dict.fromkeys(given[name] for name in row.inputs):
                path = _to_scale(rw, operand)
                if not path:
                    continue
                number = rw.arguments(path[-1])["other"]
                reason = _objection(rw, node, path, number, regions)
                if reason:
                    rw.skip(path[-1], reason)
                else:
                    _move(rw, node, path[-1], float(number))


def _to_scale(rw: Rewriter, operand: fx.Node) -> list[fx.Node]:
    """The way from an operand up to the product with a number that it comes from, if it does."""
    path, node = [operand], operand
    while (above := moves_values(node, rw.gm)) is not None:
        path.append(above)
        node = above
    row = rw.op(node)
    if row is None or row.name != "mul" or not is_float_spec(node.meta.get("spec")):
        return []
    other = rw.arguments(node)["other"]
    return path if isinstance(other, float | int) and not isinstance(other, bool) else []


def _objection(
    rw: Rewriter, product: fx.Node, path: list[fx.Node], number: float, regions: Regions | None
) -> str | None:
    """Why the number cannot go behind the product, or None."""
    if not (math.isfinite(number) and number > 0):
        return f"{number} is no positive number"
    below = product
    for node in path:
        others = [user.name for user in node.users if user is not below]
        if others:
            return f"{node.name} is also read by {', '.join(others)}"
        below = node
    if sum(operand is path[0] for operand in rw.arguments(product).values()) > 1:
        return f"{product.name} multiplies it with itself"
    if rw.module(path[-1]) is None:
        return "it is no module"
    if regions is not None and not all(map(regions.holds, (product, path[-1]))):
        return "it lies outside of the quantized regions"
    return None


def _move(rw: Rewriter, product: fx.Node, scaled: fx.Node, number: float) -> None:
    rw.redirect(scaled, rw.arguments(scaled)["input"], list(scaled.users))
    consumers = list(product.users)
    with rw.after(product):
        moved = rw.call_module(str(scaled.target), product, number, like=scaled)
    moved.meta["spec"] = product.meta["spec"]
    rw.redirect(product, moved, consumers)
    rw.erase(scaled)
    rw.explain(moved, f"it scaled an operand of {product.name} before: see MoveScales")
