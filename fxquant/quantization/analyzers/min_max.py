"""What an analyzer is, and the simplest one: the smallest and the largest value seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fxquant.quantization.layout import Layout
    from fxquant.quantization.range_to_qparams import IntegerRange


class Statistics(Protocol):
    """What was seen so far; bounded, however much that was."""

    def update(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Take in one tensor and its extremes (finite, of the quantizer's shape)."""


@runtime_checkable
class Mergeable(Statistics, Protocol):
    """Statistics of a part of the data that can be put together with those of other parts.

    Merging is exact, associative and does not depend on the order: whatever the data are cut into,
    over batches, shards or processes, the merged statistics are those of one pass over all of it.
    """

    def merge(self, other: Any) -> None:
        """Take in what another one of the same kind and shape has seen."""

    def state(self) -> dict[str, Tensor]:
        """All that was seen, as tensors; none if nothing was."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Become what another one was when it gave its `state`.

        Raises:
            ValueError: no statistics of this kind and shape have such a state.
        """


@runtime_checkable
class EncodingAnalyzer(Protocol):
    """Chooses a range from statistics."""

    def start(self, layout: Layout) -> Statistics:
        """Statistics of nothing."""

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """Lower and upper end of the range, of the quantizer's shape; None if nothing was seen."""


class MinMaxStatistics:
    """Smallest and largest value of every range.

    Args:
        shape: of the ranges.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.shape = shape
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

    def state(self) -> dict[str, Tensor]:
        """Both ends; none if nothing was seen."""
        if self.low is None or self.high is None:
            return {}
        return {"low": self.low, "high": self.high}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Become what another one was when it gave its `state`.

        Raises:
            ValueError: these are no ends of ranges of this shape.
        """
        ends = dict.fromkeys(("low", "high"), self.shape)
        require_state(state, ends, (torch.float32, torch.float64))
        if state and not bool((state["low"] <= state["high"]).all()):
            msg = "the smallest value is above the largest"
            raise ValueError(msg)
        self.low, self.high = state.get("low"), state.get("high")


def require_state(
    state: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Check names, shapes and types of stored statistics; no tensors at all say "nothing seen".

    Raises:
        ValueError: they do not fit, or hold NaN or infinity.
    """
    if not state:
        return
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found != dict(shapes):
        msg = f"tensors {found} where {dict(shapes)} are expected"
        raise ValueError(msg)
    for name, value in state.items():
        if value.dtype not in dtypes or not bool(value.isfinite().all()):
            msg = f"{name} holds {value.dtype} or numbers that are not finite"
            raise ValueError(msg)


@dataclass(frozen=True)
class MinMax:
    """The whole range that was seen: nothing is clipped."""

    def start(self, layout: Layout) -> MinMaxStatistics:
        """Statistics of nothing."""
        return MinMaxStatistics(layout.shape)

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """The extremes."""
        if not isinstance(statistics, MinMaxStatistics) or statistics.low is None:
            return None
        high = statistics.high
        return None if high is None else (statistics.low, high)
