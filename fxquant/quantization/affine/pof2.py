"""Steps that are powers of two, as chips have them that shift instead of multiply.

A *position* `fp` says where the point is: the step is `2 ** -fp`. It is searched among a few
positions, from the finest one that clips nothing to finer ones that clip:

    fp0 = floor(log2(1 / max(min / (qmin - 0.5), max / (qmax + 0.5))))
    fp  = the first of fp0, fp0 + 1, ... with the smallest sum of squared errors, and a cap

One search a tensor that is seen; the position that was found most often is taken. Nothing has to be
kept but a count for every position, however many tensors there are.

Source: the fixed-point calibration of the Vitis AI quantizer 3.5 ("diffs", "modal").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxquant.errors import QuantizationError
from fxquant.quantization.affine.pof2_rounding import RoundingQuantizeDequantize

if TYPE_CHECKING:
    from fxquant.quantization.analyzers import Statistics
    from fxquant.quantization.layout import Layout
    from fxquant.quantization.range_to_qparams import IntegerRange

OF_ZEROS = 18  # position of a tensor of zeros, before the cap
_LOWEST, _HIGHEST = -40, 40
_AT_ONCE = 1 << 20


def position_of(scale: float) -> int:
    """The position of a step.

    Raises:
        QuantizationError: FXQ418, it is no power of two.

    Example:
        >>> position_of(0.25)
        2
    """
    mantissa, exponent = math.frexp(scale)
    if mantissa != 0.5:
        what = f"a step of {scale} is no power of two"
        raise QuantizationError("FXQ418", what, fix="round it: 2.0 ** round(math.log2(scale))")
    return 1 - exponent


def coarsest_position(low: Tensor, high: Tensor, grid: IntegerRange) -> Tensor:
    """The finest position that clips nothing: `[R], [R] -> [R]`, int64.

    Half a step beyond the ends of the grid still rounds to them.
    """
    below = grid.middle - grid.qmin + 0.5
    above = grid.qmax - grid.middle + 0.5
    step = torch.maximum(-low.double() / below, high.double() / above)
    mantissa, exponent = torch.frexp(step)
    found = torch.where(mantissa > 0.5, -exponent, 1 - exponent).long()
    return torch.where(step > 0, found, OF_ZEROS).clamp(_LOWEST, _HIGHEST)


def search(rows: Tensor, first: Tensor, grid: IntegerRange, scope: int) -> Tensor:
    """The position with the smallest squared error, the first of several: `[R, N], [R] -> [R]`."""
    if scope == 1:
        return first
    errors = torch.stack([_squared_error(rows, first + k, grid) for k in range(scope)])
    smallest = errors.amin(0)
    # argmin may return any of several minima
    return first + (errors == smallest).long().cumsum(0).eq(0).sum(0)


def _squared_error(rows: Tensor, position: Tensor, grid: IntegerRange) -> Tensor:
    """Sum over each row of the squared quantization error, float64 `[R]`."""
    step = torch.exp2(-position.to(rows.dtype)).unsqueeze(1)
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    width = max(1, _AT_ONCE // len(rows))
    for start in range(0, rows.shape[1], width):
        part = rows[:, start : start + width]
        low, high = grid.qmin - grid.middle, grid.qmax - grid.middle
        error = (part / step).round_().clamp_(low, high).mul_(step).sub_(part)
        total += error.square_().sum(1, dtype=torch.float64)
    return total


class PositionCounts:
    """How often each position was the best one, for every range: int64 `[R, positions]`."""

    def __init__(self, layout: Layout, scope: int, cap: int | None) -> None:
        self.layout, self.scope, self.cap = layout, scope, cap
        self.grid: IntegerRange | None = None
        ranges = math.prod(layout.shape)
        self.counts = torch.zeros(ranges, _HIGHEST - _LOWEST + 1, dtype=torch.int64)

    def update(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Search the position of one tensor and count it."""
        found = self.position(x, low, high) - _LOWEST
        if self.counts.device != found.device:
            self.counts = self.counts.to(found.device)
        self.counts.scatter_add_(1, found.unsqueeze(1), torch.ones_like(found).unsqueeze(1))

    def position(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The position of one tensor: `[R]`."""
        if self.grid is None:
            raise QuantizationError(
                "FXQ419",
                "positions are searched for grids of a PowerOfTwoQuantizeDequantize only",
                fix="use that quantizer, or another analyzer",
            )
        first = coarsest_position(low.reshape(-1), high.reshape(-1), self.grid)
        found = search(self.layout.rows(x), first, self.grid, self.scope)
        return found if self.cap is None else found.clamp(max=self.cap)

    def modal(self) -> Tensor | None:
        """The position found most often, the smallest of several: `[R]`."""
        if not bool(self.counts.any()):
            return None
        most = self.counts.amax(1, keepdim=True)
        return (self.counts == most).long().cumsum(1).eq(0).sum(1) + _LOWEST


@dataclass(frozen=True)
class PowerOfTwo:
    """Analyzer that searches positions.

    Args:
        scope: positions that are tried; 1 clips nothing.
        cap: finest position; None: no cap.
    """

    scope: int = 5
    cap: int | None = None

    def start(self, layout: Layout) -> PositionCounts:
        """Statistics of nothing."""
        return PositionCounts(layout, self.scope, self.cap)

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """The whole grid at the position found most often."""
        if not isinstance(statistics, PositionCounts):
            return None
        found = statistics.modal()
        if found is None:
            return None
        return range_at(found.reshape(statistics.layout.shape), grid)


def range_at(position: Tensor, grid: IntegerRange) -> tuple[Tensor, Tensor]:
    """Both ends of the grid at a position, exact in float32: `[S] -> [S], [S]`."""
    step = torch.exp2(-position.float())
    return step * (grid.qmin - grid.middle), step * (grid.qmax - grid.middle)


class PowerOfTwoQuantizeDequantize(RoundingQuantizeDequantize):
    """`QuantizeDequantize` whose step is always a power of two.

    Whatever the range is, set, searched or learned, the step is the one of the coarsest position
    that covers it.

    Args:
        shape: as for `QuantizeDequantize`.
        bitwidth: as for `QuantizeDequantize`.
        options: `signed`, `qmin`, `qmax`, `rounding`, `encoding_analyzer`; by default the search.

    Example:
        >>> q = PowerOfTwoQuantizeDequantize(shape=(), bitwidth=8)
        >>> q.set_range(-1.0, 1.0)
        >>> q.get_scale()
        tensor(0.0156)
    """

    def __init__(self, shape: Any = (), bitwidth: int | None = None, **options: Any) -> None:
        options.setdefault("symmetric", True)
        options["encoding_analyzer"] = options.get("encoding_analyzer") or PowerOfTwo()
        if not options["symmetric"]:
            raise QuantizationError(
                "FXQ418", "a grid with powers of two is symmetric", fix="pass symmetric=True"
            )
        super().__init__(shape, bitwidth, **options)

    def _scale(self, low: Tensor, high: Tensor) -> Tensor:
        position = coarsest_position(low.clamp(max=0.0), high.clamp(min=0.0), self.grid)
        step = torch.exp2(-position.float())
        return torch.where((low + high).isnan(), torch.nan, step)

    def set_position(self, position: Tensor | int) -> None:
        """Set the range by the position of its step; numbers and smaller shapes are broadcast."""
        self.set_range(*range_at(torch.as_tensor(position), self.grid))

    def get_position(self) -> Tensor | None:
        """Position of the step, int64 of the quantizer's shape, or None before calibration."""
        scale = self.get_scale()
        return None if scale is None else 1 - torch.frexp(scale).exponent.long()

    def _start(self) -> None:
        super()._start()
        if isinstance(self._statistics, PositionCounts):
            self._statistics.grid = self.grid
