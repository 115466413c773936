"""Histograms that grow with the data and do not depend on the order in which the data came.

Bins are `2 ** e` wide and aligned to zero. When a value falls outside, neighbouring bins are merged
in pairs until everything fits, and merging is exact: `floor(x / 2w)` is `floor(x / w) // 2`. The
final width follows from the smallest and the largest value alone, so any order, any cut into
batches and any merging of histograms of parts give the same counts. Histograms that re-bin by
interpolation do not: what they end with depends on which batch came first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.quantization.analyzers.min_max import require_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fxquant.quantization.layout import Layout

_CHUNK = 1 << 20  # elements that are turned into bin numbers at a time
_TABLE = 1 << 18  # counts that are written at a time: they stay in the cache
# powers of two at which scaling stays exact in float32
_SMALLEST, _LARGEST = -110, 120
# of an element of a row with a mean square of one, and of one of the faintest rows
_UNIT, _MOST = 2.0**16, 2.0**30


class Histogram:
    """One histogram for every range, `bins` bins each; the span always includes zero.

    Args:
        layout: how the ranges are spread over a tensor.
        bins: bins of each range.
        relative: count an element with the inverse of the mean square of its row, the last axis of
            the tensor: an error then counts by what it is of its row. For one range only.

    Attributes:
        counts: int64 `[R, bins]`; relative ones are in fixed point, so that they add exactly.
        first: number of the first bin, in multiples of the width, int64 `[R]`.
        exponent: the width of a bin is `2 ** exponent`, int64 `[R]`.
        low: smallest value seen, `[R]`.
        high: largest value seen, `[R]`.
    """

    def __init__(self, layout: Layout, bins: int, *, relative: bool = False) -> None:
        self.layout = layout
        self.bins = bins
        self.relative = relative and layout.single
        rows = math.prod(layout.shape)
        self.counts = torch.zeros(rows, bins, dtype=torch.int64)
        self.first = torch.zeros(rows, dtype=torch.int64)
        self.exponent = torch.full((rows,), _SMALLEST)
        self.low = torch.zeros(rows, dtype=torch.float64)
        self.high = torch.zeros(rows, dtype=torch.float64)
        self.empty = True

    @property
    def width(self) -> Tensor:
        """Width of a bin, float64 `[R]`."""
        return torch.exp2(self.exponent.double())

    @property
    def middles(self) -> Tensor:
        """Middle of every bin, float64 `[R, bins]`."""
        numbers = torch.arange(self.bins, device=self.first.device) + self.first.unsqueeze(1)
        return (numbers.double() + 0.5) * self.width.unsqueeze(1)

    def occupied(self, part: slice) -> tuple[Tensor, Tensor]:
        """Middles (float32) and counts (float64) of the bins that hold something: `[R, W]` twice.

        Every row begins with its outermost bins, from both ends in turn, and ends with counts of
        zero where another row has more of them.

        Args:
            part: of the rows.
        """
        counts, first, exponent = self.counts[part], self.first[part], self.exponent[part]
        flat = counts.reshape(-1)
        found = flat.nonzero().squeeze(1)
        sizes = counts.count_nonzero(1).unsqueeze(1)
        place = torch.arange(int(sizes.max()), device=found.device)
        inner = torch.div(place, 2, rounding_mode="floor")
        # even places count from the first bin, odd ones from the last one
        turned = torch.where(place % 2 == 0, inner, sizes - 1 - inner)
        turned += sizes.cumsum(0) - sizes
        # `index_select` reads what indexing by a table reads, in a fifth of the time
        bins = found.index_select(0, turned.clamp_(0, len(found) - 1).reshape(-1))
        inside = place < sizes
        filled = flat.index_select(0, bins).reshape(turned.shape).double().mul_(inside)
        begins = torch.arange(len(counts), device=found.device) * self.bins - first
        bins = bins.reshape(turned.shape).sub_(begins.unsqueeze(1)).mul_(inside)
        # a number of a bin and a half times a power of two: exact in float32
        width = torch.exp2(exponent.float()).unsqueeze(1)
        return bins.float().add_(0.5).mul_(width), filled

    def update(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Count the elements of one tensor."""
        if self.empty and self.counts.device != x.device:
            for name in ("counts", "first", "exponent", "low", "high"):
                setattr(self, name, getattr(self, name).to(x.device))
        self.grow(low.reshape(-1).double(), high.reshape(-1).double())
        if self.relative:
            self._count_relative(x.reshape(-1, x.shape[-1] if x.dim() else 1))
            return
        rows = self.layout.rows(x)
        height = max(1, _TABLE // self.bins)
        width = max(1, _CHUNK // min(height, rows.shape[0]))
        for top in range(0, rows.shape[0], height):
            part = slice(top, top + height)
            for start in range(0, rows.shape[1], width):
                self._count(rows[part, start : start + width], part)

    def merge(self, other: Histogram) -> None:
        """Take in what another histogram of the same shape has seen; exact and order-free."""
        if other.empty:
            return
        self.grow(other.low, other.high)
        moved = _rebinned(other.counts, other.first, other.exponent, self.first, self.exponent)
        self.counts = self.counts + moved

    def state(self) -> dict[str, Tensor]:
        """Counts and extremes, from which the bins follow; none if nothing was seen."""
        if self.empty:
            return {}
        return {"counts": self.counts, "extremes": torch.stack((self.low, self.high))}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Become what another one was when it gave its `state`.

        Raises:
            ValueError: it is no state of a histogram with as many ranges and bins.
        """
        rows = len(self.first)
        counts = {name: state[name] for name in ("counts",) if name in state}
        others = {name: value for name, value in state.items() if name not in counts}
        require_state(counts, {"counts": (rows, self.bins)}, (torch.int64,))
        require_state(others, {"extremes": (2, rows)}, (torch.float64,))
        found = Histogram(self.layout, self.bins, relative=self.relative)
        if state:
            if len(state) < 2 or bool((state["counts"] < 0).any()):
                msg = "a histogram has counts and extremes, and no count is negative"
                raise ValueError(msg)
            low, high = state["extremes"]
            if not bool((low <= high).all()):
                msg = "the smallest value is above the largest"
                raise ValueError(msg)
            found.grow(low, high)
            found.counts = state["counts"]
        vars(self).update(vars(found))

    def grow(self, low: Tensor, high: Tensor) -> None:
        """Merge bins until `[low, high]` fits: `[R], [R]`."""
        seen_low, seen_high = low, high
        if not self.empty:
            seen_low, seen_high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.low, self.high = seen_low, seen_high
        first, exponent = _bins_for(seen_low.clamp(max=0.0), seen_high.clamp(min=0.0), self.bins)
        if self.empty:
            self.first, self.exponent = first, exponent
        elif not torch.equal(first, self.first) or not torch.equal(exponent, self.exponent):
            self.counts = _rebinned(self.counts, self.first, self.exponent, first, exponent)
            self.first, self.exponent = first, exponent
        self.empty = False

    def _count_relative(self, x: Tensor) -> None:
        """Count rows by the inverse of their mean square: `[n, C]`."""
        scale, first = torch.exp2(-self.exponent.to(x.dtype)), self.first.to(x.dtype)
        for rows in x.split(max(1, _CHUNK // x.shape[1])):
            numbers = torch.mul(rows, scale).floor_().sub_(first).to(torch.int32)
            weights = _weights(rows).unsqueeze(1).expand_as(rows).reshape(-1)
            # whole numbers below 2 ** 53 in all: floating point adds them exactly
            found = torch.bincount(numbers.reshape(-1), weights, minlength=self.counts.numel())
            self.counts += found.long()

    def _count(self, rows: Tensor, part: slice) -> None:
        scale = torch.exp2(-self.exponent[part].to(rows.dtype))
        first, counts = self.first[part].to(rows.dtype), self.counts[part]
        if rows.shape[0] > 1:
            scale, first = scale.unsqueeze(1), first.unsqueeze(1)
        numbers = torch.mul(rows, scale).floor_().sub_(first).to(torch.int32)
        if rows.shape[0] > 1:
            starts = torch.arange(rows.shape[0], dtype=torch.int32, device=rows.device)
            numbers += starts.unsqueeze(1) * self.bins
        found = torch.bincount(numbers.reshape(-1), minlength=counts.numel())
        counts += found.reshape(counts.shape)


def _weights(rows: Tensor) -> Tensor:
    """Whole numbers in inverse proportion to mean squares, none for rows of zeros: `[n, C] -> [n]`.

    Mean squares from `2 ** -14` to `2 ** 16` are told apart; what lies outside counts as the end.
    """
    energy = rows.double().square().mean(1)
    return torch.where(energy > 0, (_UNIT / energy).round_().clamp_(1.0, _MOST), 0.0)


def _bins_for(low: Tensor, high: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """First bin and exponent of the narrowest bins that cover `[low, high]`: `[R] -> [R], [R]`."""
    span = (high - low).clamp(min=2.0**-140)
    exponent = (torch.frexp(span / bins).exponent.long() - 1).clamp(_SMALLEST, _LARGEST)
    while True:
        width = torch.exp2(exponent.double())
        first, last = torch.floor(low / width).long(), torch.floor(high / width).long()
        wide = last - first >= bins
        if not bool(wide.any()):
            return first, exponent
        exponent = exponent + wide.long()


def _rebinned(
    counts: Tensor, first: Tensor, exponent: Tensor, new_first: Tensor, new_exponent: Tensor
) -> Tensor:
    """Counts `[R, bins]` in the wider bins of another histogram."""
    shift = (new_exponent - exponent).clamp(0, 62).unsqueeze(1)
    numbers = torch.arange(counts.shape[1], device=counts.device) + first.unsqueeze(1)
    target = (numbers >> shift) - new_first.unsqueeze(1)
    # bins that lie outside are empty
    target = target.clamp(0, counts.shape[1] - 1)
    return torch.zeros_like(counts).scatter_add_(1, target, counts)


@dataclass(frozen=True)
class OverHistogram:
    """What analyzers share that choose a range over a histogram.

    Args:
        bins: bins of the histogram of a tensor with one range.
        channel_bins: bins of the histogram of each range where there are several.
    """

    bins: int = 2048
    channel_bins: int = 512

    def start(self, layout: Layout) -> Histogram:
        """Statistics of nothing."""
        return Histogram(layout, self._bins_of(layout))

    def _bins_of(self, layout: Layout) -> int:
        return self.bins if layout.single else self.channel_bins
