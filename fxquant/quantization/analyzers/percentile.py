"""A range that leaves out a given share of the values at each end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.errors import QuantizationError
from fxquant.quantization.analyzers.histogram import Histogram

if TYPE_CHECKING:
    from fxquant.quantization.analyzers.min_max import Statistics
    from fxquant.quantization.layout import Layout
    from fxquant.quantization.range_to_qparams import IntegerRange


@dataclass(frozen=True)
class Percentile:
    """From the `100 - percentile` to the `percentile` per cent point of the values.

    Args:
        percentile: from 50 to 100; 100 is the whole range.
        bins: bins of the histogram; the ends are as precise as the range divided by half of this.
    """

    percentile: float = 99.99
    bins: int = 2048

    def __post_init__(self) -> None:
        number = isinstance(self.percentile, int | float)
        if not number or not 50 <= self.percentile <= 100:
            what = f"percentile {self.percentile!r} is not between 50 and 100"
            raise QuantizationError("FXQ415", what, fix="99.99 leaves out one value in 10000")

    def start(self, layout: Layout) -> Histogram:
        """Statistics of nothing."""
        return Histogram(layout, self.bins)

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """The two points, within the values that were seen."""
        if not isinstance(statistics, Histogram) or statistics.empty:
            return None
        share = self.percentile / 100
        below = statistics.counts.cumsum(1).double()
        total = below[:, -1:]
        upper = torch.searchsorted(below, total * share).clamp(max=self.bins - 1)
        lower = torch.searchsorted(below, total * (1 - share), right=True).clamp(max=self.bins - 1)
        width, first = statistics.width, statistics.first
        high = (first + upper[:, 0] + 1) * width
        low = (first + lower[:, 0]) * width
        shape = statistics.layout.shape
        high = torch.minimum(high, statistics.high).float().reshape(shape)
        return torch.maximum(low, statistics.low).float().reshape(shape), high
