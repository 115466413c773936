"""Ranges by relative entropy: how much a clipped and coarsened histogram tells less than the data.

Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017, slides 28 to 38. The histogram here is
that of the other analyzers, so batches can come in any order; thresholds are tried from an eighth
of the largest magnitude on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.quantization.analyzers.histogram import Histogram

if TYPE_CHECKING:
    from fxquant.quantization.analyzers import Statistics
    from fxquant.quantization.layout import Layout
    from fxquant.quantization.range_to_qparams import IntegerRange


@dataclass(frozen=True)
class Entropy:
    """The threshold with the smallest Kullback-Leibler divergence.

    Args:
        bins: bins of the histogram.
        candidates: thresholds that are tried.
    """

    bins: int = 2048
    candidates: int = 100

    def start(self, layout: Layout) -> Histogram:
        """Statistics of nothing."""
        return Histogram(layout, self.bins)

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """The best threshold for every range, on both sides of zero."""
        if not isinstance(statistics, Histogram) or statistics.empty:
            return None
        middles, counts = statistics.middles, statistics.counts.double()
        levels = max(2, grid.steps // 2 if grid.signed or grid.symmetric else grid.steps)
        ends = [self._threshold(middles[r].abs(), counts[r], levels) for r in range(len(counts))]
        shape = statistics.layout.shape
        limit = torch.tensor(ends, dtype=torch.float64)
        low = torch.maximum(statistics.low.cpu().clamp(max=0.0), -limit)
        high = torch.minimum(statistics.high.cpu().clamp(min=0.0), limit)
        device = statistics.counts.device
        return low.float().reshape(shape).to(device), high.float().reshape(shape).to(device)

    def _threshold(self, sizes: Tensor, counts: Tensor, levels: int) -> float:
        order = sizes.argsort()
        sizes, counts = sizes[order], counts[order]
        largest = float(sizes[counts > 0].max()) if bool(counts.any()) else 0.0
        best, chosen = float("inf"), largest
        for step in range(self.candidates, self.candidates // 8, -1):
            threshold = largest * step / self.candidates
            found = _divergence(sizes, counts, threshold, levels)
            if found < best:
                best, chosen = found, threshold
        return chosen


def _divergence(sizes: Tensor, counts: Tensor, threshold: float, levels: int) -> float:
    """Divergence of the coarsened from the clipped distribution of magnitudes: `[B], [B] -> 1`."""
    inside = sizes <= threshold
    if not bool(counts[inside].any()):
        return float("inf")
    reference = counts[inside].clone()
    reference[-1] += counts[~inside].sum()
    group = (sizes[inside] / (threshold / levels)).long().clamp(max=levels - 1)
    occupied = (counts[inside] > 0).double()
    sums = torch.zeros(levels, dtype=torch.float64, device=sizes.device)
    share = sums.clone().scatter_add_(0, group, occupied).clamp(min=1.0)
    sums = sums.scatter_add_(0, group, counts[inside])
    coarse = (sums / share)[group] * occupied
    p, q = reference / reference.sum(), coarse / coarse.sum()
    known = p > 0
    return float((p[known] * (p[known] / q[known].clamp(min=1e-12)).log()).sum())
