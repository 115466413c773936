"""Numbers that scale an operand of a product, behind the product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from fxquant.graph.pass_infra import Fact, Pass
from fxquant.placement.dataflow import is_float_spec, moves_values
from fxquant.placement.regions import find_regions

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter


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
            if row is None or row.name not in ("matmul", "bmm"):
                continue
            if regions is not None and not regions.holds(node):
                continue
            given = rw.arguments(node)
            for name in row.inputs:
                scale = _scale(rw, given[name])
                if scale is not None and (regions is None or regions.holds(scale[0])):
                    _move(rw, node, *scale)


def _scale(rw: Rewriter, operand: fx.Node) -> tuple[fx.Node, float] | None:
    """The product with a positive number behind an operand that nothing else reads."""
    node = operand
    while len(node.users) == 1:
        row = rw.op(node)
        if row is not None and row.name == "mul":
            return _number(rw, node)
        above = moves_values(node, rw.gm)
        if above is None:
            return None
        node = above
    return None


def _number(rw: Rewriter, node: fx.Node) -> tuple[fx.Node, float] | None:
    other = rw.arguments(node)["other"]
    plain = isinstance(other, float | int) and not isinstance(other, bool)
    plain = plain and node.op == "call_module"
    if plain and math.isfinite(other) and other > 0 and is_float_spec(node.meta.get("spec")):
        return node, float(other)
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
