"""Positions moved so that a chip can shift as far as they ask: on request only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fxquant.graph.pass_infra import Fact, Pass
from fxquant.placement.shift_constraints import Shift, find_shifts, position
from fxquant.targets import Shifts

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter
    from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize

_ROUNDS = 5  # a moved position is an operand of other operators


@dataclass(frozen=True)
class AlignShifts(Pass):
    """Make positions coarser until every shift lies in its range.

    Before: `conv2d: fp_i 12 + fp_w 9 - fp_o 4 = cut 17` where 16 is the largest.
    After:  `conv2d: fp_i 12 + fp_w 8 - fp_o 4 = cut 16`.

    Attributes:
        limits: the ranges of a target.
    """

    needs = frozenset({Fact.PLACED})

    limits: Shifts = field(default_factory=Shifts)

    def run(self, rw: Rewriter) -> None:
        """Repair until nothing changes."""
        for _ in range(_ROUNDS):
            wrong = [s for s in find_shifts(rw.gm, self.limits) if not s.fits]
            if not wrong:
                return
            for shift in wrong:
                _repair(rw, shift)
        for shift in find_shifts(rw.gm, self.limits):
            if not shift.fits:
                rw.skip(shift.node, f"shift {shift.kind} is {shift.value}, allowed {shift.allowed}")


def _repair(rw: Rewriter, shift: Shift) -> None:
    """Coarser positions clip nothing; a finer one is the last resort."""
    low, high = shift.allowed
    excess = shift.value - high if shift.value > high else shift.value - low
    moved: PowerOfTwoQuantizeDequantize | None
    if shift.kind == "cut":
        # too far: a coarser weight; to the left: a coarser output
        moved, change = (shift.weight, -excess) if excess > 0 else (shift.output, excess)
    elif shift.kind == "bias":
        moved, change = shift.bias, excess
    elif shift.kind == "read":
        moved, change = max(shift.inputs, key=lambda q: position(q)[0]), -excess
    else:
        moved, change = shift.output, excess
    if moved is None or not moved.overwritable:
        rw.skip(shift.node, f"shift {shift.kind} is {shift.value}, but the range is fixed")
        return
    found = moved.get_position()
    if found is not None:
        rw.set_position(moved, found + change)
        rw.explain(
            shift.node, f"shift {shift.kind} was {shift.value}: a position moved by {change}"
        )
