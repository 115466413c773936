"""One grid of activations while its range is chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxquant.quantization.affine import AffineQuantizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fxquant.ptq.activation_ranges.range_candidates import Observed

Ends = tuple[Tensor, Tensor]

_NO_CHANGE = "as it was"

# a range must cost less than this share of what the present one does; what data did not show is
# clipped by a narrower one

_WORTHWHILE = 0.97


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        name: of the candidate, or that there is none.
        ends: of the range.
        cost_before: on the batches held out.
        cost_after: the same.
        changed: whether it is another range.
    """

    name: str
    ends: Ends
    cost_before: float
    cost_after: float
    changed: bool

    def none(self, before: Ends) -> Choice:
        """No change."""
        return Choice(_NO_CHANGE, before, self.cost_before, self.cost_before, changed=False)


@dataclass(eq=False)
class ChosenGrid:
    """A grid, the ranges that are tried for it, and what they cost.

    Attributes:
        quantizer: its quantizer.
        name: the quantizer's path.
        observed: the values that lie on it.
        before: ends of the range as it was.
        tries: names and ends of ranges with different steps or zero points; the present one first.
        costs: of these, on the batches to choose by and on those to judge by, float64 `[2, tries]`.
    """

    quantizer: AffineQuantizer
    name: str
    observed: Observed
    before: Ends
    tries: list[tuple[str, Ends]] = field(default_factory=list)
    costs: Tensor = field(default_factory=lambda: torch.zeros(2, 0))

    def begin(self) -> None:
        """Make the ranges that are tried of the values that were seen."""
        known: set[tuple[float, float]] = set()
        for name, ends in [(_NO_CHANGE, self.before), *self.observed.ranges()]:
            self.set(ends)
            key = self._key()
            if key not in known:
                known.add(key)
                self.tries.append((name, self._ends()))
        self.set(self.before)
        self.costs = torch.zeros(2, len(self.tries), dtype=torch.float64)

    def trials(self) -> Iterator[int]:
        """Numbers of the tries; the quantizer has the range of each in turn."""
        try:
            for i, (_, ends) in enumerate(self.tries):
                self.set(ends)
                yield i
        finally:
            self.set(self.before)

    def choice(self) -> Choice:
        """The cheapest range, if it is cheaper than the present one on the batches held out too."""
        total = self.costs.sum(0)
        first, best = float(self.costs[1, 0]), int(total.argmin())
        last = float(self.costs[1, best])
        if not last < _WORTHWHILE * first or not total[best] < _WORTHWHILE * total[0]:
            best, last = 0, first
        return Choice(*self.tries[best], first, last, changed=best != 0)

    def set(self, ends: Ends) -> None:
        """Set the range; frozen ends stay."""
        held = self.quantizer._held
        low, high = ends
        self.quantizer.set_range(
            self.before[0] if "min" in held else low, self.before[1] if "max" in held else high
        )

    def _ends(self) -> Ends:
        return self.quantizer.min.detach().clone(), self.quantizer.max.detach().clone()

    def _key(self) -> tuple[float, float]:
        scale, offset = self.quantizer.get_scale(), self.quantizer.get_offset()
        if scale is None or offset is None:
            raise self.quantizer._uncalibrated()
        return scale.item(), offset.item()


def obstacle(quantizer: Any) -> str:
    """Why the range of an activation's quantizer is not chosen; an empty text if it may be."""
    if not isinstance(quantizer, AffineQuantizer):
        return "it is no grid of integers"
    if not quantizer._single:
        return "it has several ranges"
    if not quantizer.overwritable or quantizer._held == {"min", "max"}:
        return "it is frozen"
    return ""
