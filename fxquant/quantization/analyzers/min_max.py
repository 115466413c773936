"""What an analyzer is, and the simplest one: the smallest and the largest value seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fxquant.quantization.layout import Layout
    from fxquant.quantization.range_to_qparams import IntegerRange


class Statistics(Protocol):
    """What was seen so far; bounded, however much that was."""

    def update(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Take in one tensor and its extremes (finite, of the quantizer's shape)."""


class Mergeable(Statistics, Protocol):
    """Statistics of a part of the data that can be put together with those of other parts.

    Merging is exact, associative and does not depend on the order: whatever the data are cut into,
    over batches, shards or processes, the merged statistics are those of one pass over all of it.
    """

    def merge(self, other: Any) -> None:
        """Take in what another one of the same kind and shape has seen."""


@runtime_checkable
class EncodingAnalyzer(Protocol):
    """Chooses a range from statistics."""

    def start(self, layout: Layout) -> Statistics:
        """Statistics of nothing."""

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """Lower and upper end of the range, of the quantizer's shape; None if nothing was seen."""


class MinMaxStatistics:
    """Smallest and largest value of every range."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def update(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Take in one tensor; its extremes are all that is needed."""
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def merge(self, other: MinMaxStatistics) -> None:
        """Take in what another one has seen; exact and order-free."""
        if other.low is not None and other.high is not None:
            self.update(other.low, other.low, other.high)


@dataclass(frozen=True)
class MinMax:
    """The whole range that was seen: nothing is clipped."""

    def start(self, layout: Layout) -> MinMaxStatistics:
        """Statistics of nothing."""
        return MinMaxStatistics()

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """The extremes."""
        if not isinstance(statistics, MinMaxStatistics) or statistics.low is None:
            return None
        high = statistics.high
        return None if high is None else (statistics.low, high)
