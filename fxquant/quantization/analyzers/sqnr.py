"""The range with the best ratio of signal to quantization noise; clipping counts more.

A candidate is tried only where it pays: the error of the bins that it clips is a lower bound of its
whole error, follows from sums over the tails of the histogram without a look at single bins, and is
above the error of the best candidate so far for most of them. The candidate that this bound and the
usual twelfth of a squared step for all other values promise most of is tried first. The result is
that of trying them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.quantization.analyzers.histogram import Histogram, OverHistogram
from fxquant.quantization.analyzers.tails import Tails

if TYPE_CHECKING:
    from fxquant.quantization.analyzers.histogram import Occupied
    from fxquant.quantization.analyzers.min_max import Statistics
    from fxquant.quantization.layout import Layout
    from fxquant.quantization.range_to_qparams import IntegerRange

_AT_ONCE = 1 << 16  # elements of a table at a time: it stays in the cache
_ROWS = 1 << 20  # bins, or candidates, of the rows that are searched together
_MANY_STEPS = 127  # of a grid: most of what is narrower than the whole range clips too much
_FEW = (8, 32)  # candidates of many ranges that are looked at before all are


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
            # what the outermost element loses is bound enough there
            bins = statistics.elements(part) if grid.steps >= _MANY_STEPS else None
            bins = bins or statistics.occupied(part)
            if bins.middles.shape[1] == 0:  # rows of zeros weigh nothing
                best[part] = 0
                continue
            best[part] = self._search(tried.over(low[part], high[part]), bins, grid)
        shape = statistics.layout.shape
        chosen_low, chosen_high = low * tried.below[best], high * tried.above[best]
        return chosen_low.float().reshape(shape), chosen_high.float().reshape(shape)

    def _candidates(self, low: Tensor, high: Tensor, grid: IntegerRange) -> _Candidates:
        if grid.symmetric or not bool(((low < 0) & (high > 0)).any()):
            share = _shares(self.candidates, low)
            return _Candidates(share, share, ordered=True)
        share = _shares(self.pairs, low)
        below, above = torch.cartesian_prod(share, share).unbind(1)
        return _Candidates(below, above, ordered=False)

    def _search(self, tried: _Ends, bins: Occupied, grid: IntegerRange) -> Tensor:
        """The candidate with the smallest error: `[R]` ends, bins `[R, W]` -> `[R]`."""
        error, tails = _Error(bins, grid, self.gamma), Tails(bins, grid, self.gamma)
        few, *more = tried.counts
        scale, zero = tried.grids(grid, few)
        least, bound = error.of_widest(scale, zero), tails.least_error(scale, zero)
        for count in more:
            if bool(((bound[:, -1] > least * (1 + 1e-6)) | (least == 0.0)).all()):
                break  # as are the bounds of all that are narrower
            scale, zero = tried.grids(grid, count)
            bound = tails.least_error(scale, zero)
        cost = torch.full_like(bound, torch.inf)
        cost[:, 0] = least
        promised = bound + scale.double().square().mul_(bins.total / 12)
        left = torch.ones_like(bound, dtype=torch.bool)
        left[:, 0] = False
        first = torch.zeros_like(left).scatter_(1, promised.argmin(1, keepdim=True), True)
        for some in (first & left, left & ~first):
            # not `<=`: a bound that is no number excludes nothing
            error.fill(cost, some & ~(bound > cost.amin(1, keepdim=True)), scale, zero)
        return cost.argmin(1)


@dataclass(frozen=True)
class _Candidates:
    """Shares of the whole range that are tried, the whole one first: `[K]`.

    Attributes:
        below: of the lower end.
        above: of the upper end.
        ordered: whether both ends shrink from one candidate to the next.
    """

    below: Tensor
    above: Tensor
    ordered: bool

    def over(self, low: Tensor, high: Tensor) -> _Ends:
        """The candidates of some ranges: `[R], [R]`."""
        return _Ends(low, high, self)


@dataclass(frozen=True)
class _Ends:
    """The candidates of some ranges, whose grids are made when they are asked for."""

    low: Tensor
    high: Tensor
    shares: _Candidates

    @property
    def counts(self) -> list[int]:
        """How many candidates are looked at, from the widest on: few, more, all.

        If both ends shrink from one to the next, more is clipped from one to the next.
        """
        whole = len(self.shares.below)
        several = self.shares.ordered and len(self.low) > 1
        return [*(n for n in _FEW if several and n < whole), whole]

    def grids(self, grid: IntegerRange, count: int) -> tuple[Tensor, Tensor]:
        """Scales and zero points of the first candidates of every range: `[R, K]` twice."""
        low = (self.low[:, None] * self.shares.below[:count]).float()
        scale = grid.scale(low, (self.high[:, None] * self.shares.above[:count]).float())
        return scale, grid.zero_point(low, scale)


@dataclass(frozen=True)
class _Error:
    """Weighted squared errors of candidates over histograms.

    Attributes:
        bins: what the histograms hold, `[R, W]`.
        grid: the integers.
        gamma: weight of the error of clipped values.
    """

    bins: Occupied
    grid: IntegerRange
    gamma: float

    def of_widest(self, scale: Tensor, zero: Tensor) -> Tensor:
        """Errors of the first candidate of every row: `[R, K], [R, K] -> [R]`."""
        middles, counts = self.bins.middles, self.bins.counts
        scale, zero = scale[:, :1], zero[:, :1]
        step = max(1, _AT_ONCE // middles.shape[1])
        parts = [slice(start, start + step) for start in range(0, len(middles), step)]
        pieces = [counts if counts is None else counts[p] for p in parts]
        return torch.cat(
            [self._of(middles[p], c, scale[p], zero[p]) for p, c in zip(parts, pieces, strict=True)]
        )

    def fill(self, cost: Tensor, wanted: Tensor, scale: Tensor, zero: Tensor) -> None:
        """Put the errors of the wanted candidates into a table: `[R, K]` each."""
        row, candidate = wanted.nonzero(as_tuple=True)
        middles, counts = self.bins.middles, self.bins.counts
        step = max(1, _AT_ONCE // middles.shape[1])
        for start in range(0, len(row), step):
            at = row[start : start + step], candidate[start : start + step]
            if len(self.bins.middles) > 1:
                # `index_select` reads what indexing by a table reads, in a fifth of the time
                middles = self.bins.middles.index_select(0, at[0])
                if self.bins.counts is not None:
                    counts = self.bins.counts.index_select(0, at[0])
            cost[at] = self._of(middles, counts, scale[at].unsqueeze(1), zero[at].unsqueeze(1))

    def _of(self, middles: Tensor, counts: Tensor | None, scale: Tensor, zero: Tensor) -> Tensor:
        """Errors of candidates: `[P or 1, W], [P or 1, W], [P, 1], [P, 1] -> [P]`."""
        squares = self._squares(middles, scale, zero)
        # in float64 the order of a sum, which depends on the CPU, decides nothing
        if counts is None:
            total = squares.sum(1, dtype=torch.float64)
        elif len(counts) == 1:
            total = squares.double() @ counts[0]
        else:
            total = torch.linalg.vecdot(squares.double(), counts)
        return total.mul_(scale[:, 0].double().square_())

    def _squares(self, middles: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Weighted squared errors of single values, in steps."""
        steps = middles / scale
        error = torch.round(steps)
        if self.grid.symmetric:
            error.clamp_(self.grid.qmin - self.grid.middle, self.grid.qmax - self.grid.middle)
        else:  # a fifth of the time of `clamp_`
            torch.maximum(error, self.grid.qmin - zero, out=error)
            torch.minimum(error, self.grid.qmax - zero, out=error)
        error.sub_(steps)
        if self.gamma == 1.0:
            return error.square_()
        # rounding is off by half a step at most: what is more is clipped, and counts `gamma` times
        clipped = F.hardshrink(error, 0.5)
        return error.square_().addcmul_(clipped, clipped, value=self.gamma - 1.0)


def _shares(count: int, like: Tensor) -> Tensor:
    """Shares from one downwards: `[count]`."""
    return torch.arange(count, 0, -1, dtype=torch.float64, device=like.device) / count
