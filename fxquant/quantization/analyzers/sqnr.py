"""The range with the best ratio of signal to quantization noise; clipping counts more.

Ranges are tried one by one, and only where it pays: what the outermost bins alone contribute to the
error of a candidate is a lower bound of the whole, and most candidates clip so much there that the
best one so far is better already. The result is that of trying them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.quantization.analyzers.histogram import Histogram, OverHistogram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fxquant.quantization.analyzers.min_max import Statistics
    from fxquant.quantization.layout import Layout
    from fxquant.quantization.range_to_qparams import IntegerRange

_AT_ONCE = 1 << 16  # elements of a table at a time: it stays in the cache
_ROWS = 1 << 18  # bins, or candidates, of the rows that are searched together
_OUTERMOST = 4  # bins that bound the error of a candidate
_COARSE = 4  # one candidate of as many along each end is tried before the others


@dataclass(frozen=True)
class Sqnr(OverHistogram):
    """Minimizes the squared error over a histogram; known as "tf_enhanced".

    Args:
        bins: bins of the histogram of a tensor with one range.
        channel_bins: bins of the histogram of each range where there are several.
        candidates: ranges tried when one end moves (symmetric grids, or values of one sign).
        pairs: ends tried on each side when both move.
        gamma: weight of the error of clipped values.
        relative: errors count by what they are of their row, the last axis of a tensor, if there is
            one range: for values that are normalized row by row behind the layers that read them.
    """

    candidates: int = 100
    pairs: int = 24
    gamma: float = 3.0
    relative: bool = False

    def start(self, layout: Layout) -> Histogram:
        """Statistics of nothing."""
        return Histogram(layout, self._bins_of(layout), relative=self.relative)

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """The best candidate for every range, the widest of equals."""
        if not isinstance(statistics, Histogram) or statistics.empty:
            return None
        low, high = statistics.low.clamp(max=0.0), statistics.high.clamp(min=0.0)
        tried = self._candidates(low, high, grid)
        best = torch.empty(len(low), dtype=torch.int64, device=low.device)
        step = max(1, _ROWS // max(len(tried.below), statistics.bins))
        for start in range(0, len(low), step):
            part = slice(start, start + step)
            ends = tried.ends(low[part], high[part])
            best[part] = self._search(tried, ends, statistics.occupied(part), grid)
        shape = statistics.layout.shape
        chosen_low, chosen_high = low * tried.below[best], high * tried.above[best]
        return chosen_low.float().reshape(shape), chosen_high.float().reshape(shape)

    def _candidates(self, low: Tensor, high: Tensor, grid: IntegerRange) -> _Candidates:
        if grid.symmetric or not bool(((low < 0) & (high > 0)).any()):
            share, coarse = _shares(self.candidates, low)
            return _Candidates(share, share, coarse)
        share, coarse = _shares(self.pairs, low)
        below, above = torch.cartesian_prod(share, share).unbind(1)
        return _Candidates(below, above, torch.cartesian_prod(coarse, coarse).all(1))

    def _search(
        self,
        tried: _Candidates,
        ends: tuple[Tensor, Tensor],
        bins: tuple[Tensor, Tensor],
        grid: IntegerRange,
    ) -> Tensor:
        """The candidate with the smallest error: `([R, K], [R, K]), ([R, W], [R, W]) -> [R]`."""
        scale = grid.scale(*ends)
        error = _Error(scale, grid.zero_point(ends[0], scale), bins, grid, self.gamma)
        bound = error.of_outermost()
        cost = torch.full_like(bound, torch.inf)
        for some in tried.rounds():
            least = cost.amin(1, keepdim=True)
            error.fill(cost, some & (bound <= least) & (cost == torch.inf))
        return cost.argmin(1)


@dataclass(frozen=True)
class _Candidates:
    """Shares of the whole range that are tried, the whole one first: `[K]`."""

    below: Tensor
    above: Tensor
    coarse: Tensor

    def ends(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Both ends of every candidate: `[R], [R] -> [R, K], [R, K]`."""
        return (low[:, None] * self.below).float(), (high[:, None] * self.above).float()

    def rounds(self) -> Iterator[Tensor]:
        """Which are tried together: the whole range, some that lie apart, all: `[K]`."""
        whole = torch.zeros_like(self.coarse)
        whole[0] = True
        yield from (whole, self.coarse, torch.ones_like(self.coarse))


@dataclass(frozen=True)
class _Error:
    """Weighted squared errors of candidates over histograms.

    Attributes:
        scale: step of every candidate, `[R, K]`.
        zero: zero points, `[R, K]`.
        bins: middles and counts of the bins, `[R, W]`.
        grid: the integers.
        gamma: weight of the error of clipped values.
    """

    scale: Tensor
    zero: Tensor
    bins: tuple[Tensor, Tensor]
    grid: IntegerRange
    gamma: float

    def of_outermost(self) -> Tensor:
        """What the outermost bins contribute to the error of every candidate: `[R, K]`."""
        middles, counts = (b[:, :_OUTERMOST].T.unsqueeze(2) for b in self.bins)
        total = torch.zeros_like(self.scale, dtype=torch.float64)
        for middle, count in zip(middles, counts, strict=True):
            total.addcmul_(self._squares(middle, self.scale, self.zero), count)
        return total.mul_(self.scale.double().square_())

    def fill(self, cost: Tensor, wanted: Tensor) -> None:
        """Put the errors of the wanted candidates into a table: `[R, K], [R, K]`."""
        row, candidate = wanted.nonzero(as_tuple=True)
        step = max(1, _AT_ONCE // self.bins[0].shape[1])
        for start in range(0, len(row), step):
            at = row[start : start + step], candidate[start : start + step]
            cost[at] = self._of(*at)

    def _of(self, row: Tensor, candidate: Tensor) -> Tensor:
        """Errors of some candidates: `[P], [P] -> [P]`."""
        middles, counts = self.bins
        if len(middles) > 1:
            middles, counts = middles.index_select(0, row), counts.index_select(0, row)
        scale, zero = self.scale[row, candidate], self.zero[row, candidate]
        squares = self._squares(middles, scale.unsqueeze(1), zero.unsqueeze(1))
        total: Tensor = torch.linalg.vecdot(squares, counts)
        return total.mul_(scale.double().square_())

    def _squares(self, middles: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Weighted squared errors of single values, in steps, float64."""
        steps = middles / scale
        error = torch.round(steps)
        if self.grid.symmetric:
            error.clamp_(self.grid.qmin - self.grid.middle, self.grid.qmax - self.grid.middle)
        else:
            error.clamp_(self.grid.qmin - zero, self.grid.qmax - zero)
        error.sub_(steps)
        # rounding is off by half a step at most: what is more is clipped, and counts `gamma` times
        clipped = F.hardshrink(error, 0.5)
        error.square_().addcmul_(clipped, clipped, value=self.gamma - 1.0)
        # in float64 the order of a sum, which depends on the CPU, decides nothing
        return error.double()


def _shares(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Shares from one downwards, and which of them are tried first: `[count]` twice."""
    number = torch.arange(count, 0, -1, dtype=torch.float64, device=like.device)
    return number / count, (count - number) % _COARSE == 0
