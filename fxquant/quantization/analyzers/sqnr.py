"""The range with the best ratio of signal to quantization noise; clipping counts more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.quantization.analyzers.histogram import Histogram, OverHistogram

if TYPE_CHECKING:
    from fxquant.quantization.analyzers.min_max import Statistics
    from fxquant.quantization.range_to_qparams import IntegerRange

_AT_ONCE = 1 << 16  # numbers of the table candidates x bins at a time: they stay in the cache


@dataclass(frozen=True)
class Sqnr(OverHistogram):
    """Minimizes the squared error over a histogram; known as "tf_enhanced".

    Args:
        bins: bins of the histogram of a tensor with one range.
        channel_bins: bins of the histogram of each range where there are several.
        candidates: ranges tried when one end moves (symmetric grids, or values of one sign).
        pairs: ends tried on each side when both move.
        gamma: weight of the error of clipped values.
    """

    candidates: int = 100
    pairs: int = 24
    gamma: float = 3.0

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """The best candidate for every range."""
        if not isinstance(statistics, Histogram) or statistics.empty:
            return None
        low, high = statistics.low.clamp(max=0.0), statistics.high.clamp(min=0.0)
        below, above = self._shares(low, high, grid)
        middles, counts = statistics.middles.float(), statistics.counts.float()
        if len(low) == 1:
            occupied = counts[0] > 0
            middles, counts = middles[:, occupied], counts[:, occupied]
        best = torch.empty(len(low), dtype=torch.int64, device=low.device)
        step = max(1, _AT_ONCE // (len(below) * middles.shape[1]))
        for start in range(0, len(low), step):
            part = slice(start, start + step)
            ends = (low[part, None] * below).float(), (high[part, None] * above).float()
            cost = self._cost(ends, middles[part], counts[part], grid)
            best[part] = cost.argmin(1)
        shape = statistics.layout.shape
        chosen_low, chosen_high = low * below[best], high * above[best]
        return chosen_low.float().reshape(shape), chosen_high.float().reshape(shape)

    def _shares(self, low: Tensor, high: Tensor, grid: IntegerRange) -> tuple[Tensor, Tensor]:
        """Shares of the whole range that are tried, the whole one first: `[K], [K]`."""
        if grid.symmetric or not bool(((low < 0) & (high > 0)).any()):
            share = _shares(self.candidates, low)
            return share, share
        share = _shares(self.pairs, low)
        pairs = torch.cartesian_prod(share, share)
        return pairs[:, 0], pairs[:, 1]

    def _cost(
        self, ends: tuple[Tensor, Tensor], middles: Tensor, counts: Tensor, grid: IntegerRange
    ) -> Tensor:
        """Weighted squared error of every candidate: `[R, K], [R, B], [R, B] -> [R, K]`."""
        scale = grid.scale(*ends)
        zero = grid.zero_point(ends[0], scale).unsqueeze(2)
        steps = middles.unsqueeze(1) / scale.unsqueeze(2)
        error = torch.round(steps)
        if grid.symmetric:
            error.clamp_(grid.qmin - grid.middle, grid.qmax - grid.middle)
        else:
            error.clamp_(grid.qmin - zero, grid.qmax - zero)
        error.sub_(steps)
        # rounding is off by half a step at most: what is more is clipped, and counts `gamma` times
        clipped = F.hardshrink(error, 0.5)
        squares = error.square_().addcmul_(clipped, clipped, value=self.gamma - 1.0)
        return (squares @ counts.unsqueeze(2)).squeeze(2) * scale.square()


def _shares(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, 0, -1, dtype=torch.float64, device=like.device) / count
