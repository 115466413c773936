"""The range that keeps most of the information: the smallest Kullback-Leibler divergence.

For every candidate range the histogram is taken twice: once with what lies outside added to the
outermost bins, and once as the grid would leave it, where all bins of one integer share their
count. The divergence of the second from the first is the information that is lost.

Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017; here on grids with any zero point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.quantization.analyzers.histogram import Histogram, OverHistogram

if TYPE_CHECKING:
    from fxquant.quantization.analyzers.min_max import Statistics
    from fxquant.quantization.range_to_qparams import IntegerRange

_LITTLE = 1e-10  # probability of what should be impossible: bins that the grid leaves empty


@dataclass(frozen=True)
class Entropy(OverHistogram):
    """Minimizes the Kullback-Leibler divergence over a histogram; known as "entropy" or "kl".

    Both ends shrink by the same share. What the histogram cannot tell apart it does not weigh: a
    grid with more integers than bins gets the whole range.

    Args:
        bins: bins of the histogram of a tensor with one range.
        channel_bins: bins of the histogram of each range where there are several.
        candidates: ranges tried, from the whole one down to `smallest` of it.
        smallest: share of the whole range below which nothing is tried.
    """

    candidates: int = 96
    smallest: float = 0.05

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """The best candidate for every range."""
        if not isinstance(statistics, Histogram) or statistics.empty:
            return None
        low, high = statistics.low.clamp(max=0.0), statistics.high.clamp(min=0.0)
        shares = torch.linspace(
            1.0, self.smallest, self.candidates, dtype=torch.float64, device=low.device
        )
        best = torch.empty_like(low)
        middles, counts = statistics.middles, statistics.counts.double()
        for row in range(len(low)):
            ends = (low[row] * shares).float(), (high[row] * shares).float()
            lost = divergence(counts[row], middles[row], ends, grid)
            best[row] = shares[lost.argmin()]
        shape = statistics.layout.shape
        return (low * best).float().reshape(shape), (high * best).float().reshape(shape)


def divergence(
    counts: Tensor, middles: Tensor, ends: tuple[Tensor, Tensor], grid: IntegerRange
) -> Tensor:
    """Information that every candidate range loses, in nats: `[B], [B], ([K], [K]) -> [K]`.

    Args:
        counts: the histogram.
        middles: middles of its bins.
        ends: lower and upper ends of the candidates.
        grid: the integers.
    """
    occupied = counts > 0
    counts, middles = counts[occupied], middles[occupied]
    scale = grid.scale(*ends)
    zero = grid.zero_point(ends[0], scale).double().unsqueeze(1)
    integers = torch.round(middles / scale.double().unsqueeze(1)) + zero
    kept = (integers >= grid.qmin) & (integers <= grid.qmax)
    integers = integers.clamp(grid.qmin, grid.qmax)
    # integers are in the order of the bins, so those that occur can be numbered along the row
    fresh = torch.diff(integers, dim=1, prepend=integers[:, :1] - 1.0) != 0
    level = torch.cumsum(fresh, 1) - 1
    inside = counts * kept
    mass = torch.zeros_like(inside).scatter_add_(1, level, inside)
    members = torch.zeros_like(inside).scatter_add_(1, level, kept.double())
    spread = kept * (mass / members.clamp(min=1.0)).gather(1, level)
    whole = inside + _clipped(counts, kept)
    p = whole / whole.sum(1, keepdim=True)
    q = spread / spread.sum(1, keepdim=True).clamp(min=1.0)
    return (p * (p.clamp(min=_LITTLE) / q.clamp(min=_LITTLE)).log()).sum(1)


def _clipped(counts: Tensor, kept: Tensor) -> Tensor:
    """What lies outside, added to the first and the last bin inside: `[B], [K, B] -> [K, B]`."""
    places = torch.arange(len(counts), device=counts.device)
    size = len(counts)
    first = torch.where(kept, places, size).amin(1, keepdim=True).clamp(max=size - 1)
    last = torch.where(kept, places, -1).amax(1, keepdim=True).clamp(min=0)
    below = (counts * (places < first)).sum(1, keepdim=True)
    above = (counts * (places > last)).sum(1, keepdim=True)
    edges = torch.zeros_like(kept, dtype=counts.dtype)
    return edges.scatter_add_(1, first, below).scatter_add_(1, last, above)
