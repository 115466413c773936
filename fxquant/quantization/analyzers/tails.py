"""What a grid clips of a histogram costs: a lower bound of its error, from sums over the tails.

Of the values beyond the end `T` of a grid, `sum c (m - T)^2` is a polynomial in `T` whose
coefficients are sums over the outermost values. They are prefix sums, made once for all grids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fxquant.quantization.analyzers.histogram import Occupied
    from fxquant.quantization.range_to_qparams import IntegerRange

_OUTERMOST = 4  # bins of each end that are summed up where there are many ranges


class Tails:
    """Both tails of histograms.

    Args:
        bins: what the histograms hold. Of many of them only the outermost bins are summed up, which
            is a lower bound as well.
        grid: the integers.
        gamma: weight of the error of clipped values.
    """

    def __init__(self, bins: Occupied, grid: IntegerRange, gamma: float) -> None:
        self.grid = grid
        (lower, low_counts), (upper, high_counts), inside = _outermost(bins)
        self.lower = _Tail(-lower.double(), low_counts * inside, inside)
        self.upper = _Tail(upper.double(), high_counts * inside, inside)
        # A quotient in float32 is off by up to 2 ** -24 of itself, and values that are clipped by
        # more than half a step count: what this does to a squared error stays below these parts of
        # it, and grids with so many integers that nothing is left exclude no candidate.
        self.slack = 0.5 + 1e-6 * grid.steps
        self.weight = gamma * max(0.0, 1.0 - 1e-6 * grid.steps)

    def least_error(self, scale: Tensor, zero: Tensor) -> Tensor:
        """A lower bound of the errors of grids: `[R, K], [R, K] -> [R, K]`, float64."""
        step, zero = scale.double(), zero.double()
        clipped = step * self.slack
        below = self.lower.error((zero - self.grid.qmin) * step, clipped)
        above = self.upper.error((self.grid.qmax - zero) * step, clipped)
        return below.add_(above).mul_(self.weight)


def _outermost(bins: Occupied) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """Middles and counts of the lowest and the highest bins, outermost first, and which there are.

    `[R, W]` each.
    """
    middles, counts = bins.middles, bins.counts
    if counts is None:
        one = torch.ones(len(middles), 1, dtype=torch.float64, device=middles.device)
        ends = middles.amin(1, keepdim=True), middles.amax(1, keepdim=True)
        return (ends[0], one), (ends[1], one), one > 0
    width = middles.shape[1] if len(middles) == 1 else min(middles.shape[1], _OUTERMOST)
    inward = torch.arange(width, device=middles.device)
    last = (bins.sizes - 1 - inward).clamp_(min=0)
    lowest = middles[:, :width], counts[:, :width]
    return lowest, (middles.gather(1, last), counts.gather(1, last)), inward < bins.sizes


class _Tail:
    """One tail: magnitudes from the outermost inwards, their counts, which of them are there."""

    def __init__(self, values: Tensor, counts: Tensor, inside: Tensor) -> None:
        self.outermost = values[:, :1]
        # from the outermost value, so that little cancels
        depth = (self.outermost - values).mul_(inside)
        sums = torch.stack((counts, counts * depth, counts * depth.square()))
        self.sums = torch.nn.functional.pad(sums.cumsum(2), (1, 0))
        self.depth = depth.masked_fill_(~inside, torch.inf)

    def error(self, end: Tensor, clipped: Tensor) -> Tensor:
        """Squared errors of what lies further beyond an end than `clipped`: `[R, K] -> [R, K]`."""
        beyond = self.outermost - end
        found = torch.searchsorted(self.depth, beyond - clipped)
        none, first, second = (s.gather(1, found) for s in self.sums)
        total: Tensor = none.mul_(beyond).sub_(first, alpha=2.0).mul_(beyond).add_(second)
        return total
