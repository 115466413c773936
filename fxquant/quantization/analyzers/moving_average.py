"""A range that follows the data: the average of the extremes of the batches, the last most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from fxquant.errors import QuantizationError

if TYPE_CHECKING:
    from fxquant.quantization.analyzers.min_max import Statistics
    from fxquant.quantization.layout import Layout
    from fxquant.quantization.range_to_qparams import IntegerRange


class MovingAverageStatistics:
    """Averages of the smallest and of the largest value of the batches."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def update(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Move towards the extremes of one batch; the first batch is taken as it is."""
        if self.low is None or self.high is None:
            self.low, self.high = low, high
            return
        self.low = self.low + self.share * (low - self.low)
        self.high = self.high + self.share * (high - self.high)


@dataclass(frozen=True)
class MovingAverage:
    """Exponential moving average of the extremes of the batches.

    The one analyzer whose result depends on the order of the batches, by definition: it forgets. So
    its statistics cannot be merged either. Use it where old batches say less than new ones, as in
    training.

    Args:
        share: weight of a new batch, above 0 and up to 1.
    """

    share: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            what = f"a new batch cannot have the weight {self.share}"
            raise QuantizationError("FXQ434", what, fix="use a share above 0 and up to 1")

    def start(self, layout: Layout) -> MovingAverageStatistics:
        """Statistics of nothing."""
        return MovingAverageStatistics(self.share)

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """The averages."""
        if not isinstance(statistics, MovingAverageStatistics) or statistics.low is None:
            return None
        return None if statistics.high is None else (statistics.low, statistics.high)
