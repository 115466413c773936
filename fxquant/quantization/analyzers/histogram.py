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

import numpy as np
import torch
from torch import Tensor

from fxquant.quantization.analyzers.min_max import require_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fxquant.quantization.layout import Layout

_CHUNK = 1 << 20  # elements that are turned into bin numbers at a time
_TABLE = 1 << 18  # counts that are written at a time: they stay in the cache
_LARGEST_NUMBER = (1 << 15) - 1  # of a bin, where numbers are kept in the place of counts
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
        self._counts: Tensor | None = None
        self._numbers: Tensor | None = None  # of the bins of the elements of one tensor, `[R, n]`
        self.first = torch.zeros(rows, dtype=torch.int64)
        self.exponent = torch.full((rows,), _SMALLEST)
        self.low = torch.zeros(rows, dtype=torch.float64)
        self.high = torch.zeros(rows, dtype=torch.float64)
        self.empty = True

    @property
    def counts(self) -> Tensor:
        """Elements in every bin, int64 `[R, bins]`.

        Relative ones are in fixed point, so that they add exactly.
        """
        if self._counts is None:
            parts = self._parts() if self._numbers is not None else ()
            shape = len(self.first), self.bins
            counts = torch.zeros(shape, dtype=torch.int64, device=self.first.device)
            for part in parts:
                counts[part] = self._counted(part)
            self._counts, self._numbers = counts, None
        return self._counts

    @counts.setter
    def counts(self, counts: Tensor) -> None:
        self._counts, self._numbers = counts, None

    @property
    def width(self) -> Tensor:
        """Width of a bin, float64 `[R]`."""
        return torch.exp2(self.exponent.double())

    @property
    def middles(self) -> Tensor:
        """Middle of every bin, float64 `[R, bins]`."""
        numbers = torch.arange(self.bins, device=self.first.device) + self.first.unsqueeze(1)
        return (numbers.double() + 0.5) * self.width.unsqueeze(1)

    def occupied(self, part: slice) -> Occupied:
        """The bins of some rows that hold something."""
        parts = [_Packed.of(self._counted(p)) for p in self._parts(part)]
        most = max(int(packed.sizes.max()) for packed in parts)
        padded = [packed.padded(most) for packed in parts]
        numbers, counts = (torch.cat(p) if len(p) > 1 else p[0] for p in zip(*padded, strict=True))
        sizes = torch.cat([packed.sizes for packed in parts])
        # a number of a bin and a half times a power of two: exact in float32
        numbers.add_((self.first[part].float() + 0.5).unsqueeze(1))
        return Occupied(numbers.mul_(self.width[part].float().unsqueeze(1)), counts, sizes)

    def elements(self, part: slice) -> Occupied | None:
        """The elements of some rows, each in a bin of its own, where that spares the counting.

        So it is for one tensor with few elements for each range; None for what was counted.
        """
        if self._numbers is None or self._numbers.shape[1] > self.bins:
            return None
        numbers = self._numbers[part].float().add_((self.first[part].float() + 0.5).unsqueeze(1))
        middles = numbers.mul_(self.width[part].float().unsqueeze(1))
        sizes = torch.full((len(middles), 1), middles.shape[1], device=middles.device)
        return Occupied(middles, None, sizes)

    def update(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Count the elements of one tensor."""
        if self.empty and self.first.device != x.device:
            for name in ("first", "exponent", "low", "high"):
                setattr(self, name, getattr(self, name).to(x.device))
            self._counts = None
        fresh = self.empty and self._counts is None
        self.grow(low.reshape(-1).double(), high.reshape(-1).double())
        if self.relative:
            self._count_relative(x.reshape(-1, x.shape[-1] if x.dim() else 1))
            return
        rows = self.layout.rows(x)
        if fresh and len(rows) > 1 and self._may_keep_numbers(rows.shape[1]):
            numbers = torch.empty(rows.shape, dtype=torch.int16, device=x.device)
            for part in self._parts():
                numbers[part] = self._numbers_of(rows[part], part)
            self._numbers = numbers
            return
        for part in self._parts():
            width = max(1, _CHUNK // len(self.first[part]))
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

    def _may_keep_numbers(self, elements: int) -> bool:
        """Whether numbers of the bins of so many elements take no more room than counts."""
        return elements <= 4 * self.bins and self.bins <= _LARGEST_NUMBER

    def _parts(self, within: slice = slice(None)) -> list[slice]:
        """Rows whose counts stay in the cache while they are written."""
        height = max(1, _TABLE // self.bins)
        begin, end, _ = within.indices(len(self.first))
        return [slice(top, min(top + height, end)) for top in range(begin, end, height)]

    def _count(self, rows: Tensor, part: slice) -> None:
        numbers = self._numbers_of(rows, part)
        if len(rows) > 1:
            self.counts[part] += _tallied(numbers, self.bins)
        else:
            found = torch.bincount(numbers.to(torch.int32).reshape(-1), minlength=self.bins)
            self.counts[part] += found

    def _counted(self, part: slice) -> Tensor:
        """Counts of some rows: `[r, bins]`, of any type of integers."""
        if self._numbers is None:
            return self.counts[part]
        return _tallied(self._numbers[part], self.bins)

    def _numbers_of(self, rows: Tensor, part: slice) -> Tensor:
        """Numbers of the bins of elements, from that of the first bin on: `[r, n]`, whole."""
        scale = torch.exp2(-self.exponent[part].to(rows.dtype))
        first = self.first[part].to(rows.dtype)
        if len(rows) > 1:
            scale, first = scale.unsqueeze(1), first.unsqueeze(1)
        return torch.mul(rows, scale).floor_().sub_(first)


@dataclass(frozen=True)
class Occupied:
    """The bins of some rows of a histogram that hold something, smallest values first.

    Attributes:
        middles: of the bins, float32 `[R, W]`; the last one again where another row has more.
        counts: float64 `[R, W]`; zeros there. None: one each, and the bins are in no order.
        sizes: number of bins of every row, `[R, 1]`.
    """

    middles: Tensor
    counts: Tensor | None
    sizes: Tensor

    @property
    def total(self) -> Tensor:
        """Elements of every row, float64 `[R, 1]`."""
        return self.sizes.double() if self.counts is None else self.counts.sum(1, keepdim=True)


@dataclass(frozen=True)
class _Packed:
    """The bins of rows that hold something, one row behind the other.

    Attributes:
        numbers: of the bins among those of all rows, float32 `[n]`.
        counts: float64 `[n]`.
        begins: number of the first bin of every row, `[r, 1]`.
        starts: where every row begins, `[r, 1]`.
        sizes: number of bins of every row, `[r, 1]`.
    """

    numbers: Tensor
    counts: Tensor
    begins: Tensor
    starts: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, counts: Tensor) -> _Packed:
        """Of the counts of all bins, `[r, bins]`."""
        found = _places(counts.bool())
        begins = torch.arange(len(counts) + 1, device=found.device) * counts.shape[1]
        starts = torch.searchsorted(found, begins)
        # `index_select` reads what indexing by a table reads, in a fifth of the time
        held = counts.reshape(-1).index_select(0, found).double()
        columns = (t.unsqueeze(1) for t in (begins[:-1], starts[:-1], starts.diff()))
        return cls(found.float(), held, *columns)  # so few bins have numbers that are exact

    def padded(self, most: int) -> tuple[Tensor, Tensor]:
        """Numbers in the row and counts, `[r, most]`; the last bin again, with no count."""
        place = torch.arange(most, device=self.sizes.device)
        at = torch.minimum(place, self.sizes - 1).add_(self.starts)
        counts = self.counts.index_select(0, at.reshape(-1)).reshape(at.shape)
        numbers = self.numbers.index_select(0, at.reshape(-1)).reshape(at.shape)
        counts.masked_fill_(place >= self.sizes, 0.0)
        return numbers.sub_(self.begins), counts


def _tallied(numbers: Tensor, bins: int) -> Tensor:
    """How often each number occurs in a row: `[r, n]` of whole numbers -> int32 `[r, bins]`."""
    counts = torch.zeros(len(numbers), bins, dtype=torch.int32, device=numbers.device)
    height = max(1, _TABLE // max(bins, numbers.shape[1]))
    ones = torch.ones(height, numbers.shape[1], dtype=torch.int32, device=numbers.device)
    for some, part in zip(counts.split(height), numbers.split(height), strict=True):
        some.scatter_add_(1, part.long(), ones[: len(part)])  # a third of the time of `bincount`
    return counts


def _places(held: Tensor) -> Tensor:
    """Places of what is true, in the order of memory: `[...] -> [n]`."""
    if held.is_cpu:  # a fifth of the time of `nonzero`
        return torch.from_numpy(np.flatnonzero(held.numpy()))
    return held.reshape(-1).nonzero().squeeze(1)


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
