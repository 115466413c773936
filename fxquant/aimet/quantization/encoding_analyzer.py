"""How ranges are chosen, with AIMET's arguments: `aimet_torch.quantization.encoding_analyzer`.

An analyzer of AIMET has a shape and keeps what it has seen. Those here do so too, over analyzers of
`fxquant.quantization.analyzers`, which are settings alone; given to a quantizer, they behave like
these. A quantizer of a simulation has such settings, which count as instances of the classes here.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxquant.errors import CalibrationError, QuantizationError, ShapeMismatchError
from fxquant.quantization.analyzers import MinMax, Percentile, Sqnr
from fxquant.quantization.layout import Layout
from fxquant.quantization.range_to_qparams import IntegerRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.quantization.analyzers import EncodingAnalyzer as Settings
    from fxquant.quantization.analyzers import Statistics

__all__ = [
    "EncodingAnalyzer",
    "MinMaxEncodingAnalyzer",
    "PercentileEncodingAnalyzer",
    "SqnrEncodingAnalyzer",
    "StatisticsNotFoundError",
    "TfEnhancedEncodingAnalyzer",
]


class StatisticsNotFoundError(CalibrationError):
    """An analyzer is asked for a range before it has seen anything."""


class EncodingAnalyzer(ABC):  # noqa: B024  # instances of other classes are registered below
    """Settings of an analyzer, and what it has seen of one tensor.

    Args:
        shape: one range for each element of this shape, laid against the tensor from the right; or
            a number of ranges.
        settings: how the range is chosen.
        block_size: elements per block along each axis of `shape`, or None.
    """

    def __init__(
        self,
        shape: Sequence[int] | int,
        settings: Settings,
        block_size: Sequence[int] | None = None,
    ) -> None:
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self._layout = Layout(self.shape, None if block_size is None else tuple(block_size))
        self._settings = settings
        self._seen: Statistics | None = None

    # what a quantizer asks ------------------------------------------------------------------------

    def start(self, layout: Layout) -> Statistics:
        """Statistics of nothing, for a quantizer whose ranges the analyzer's are laid against.

        Raises:
            ShapeMismatchError: FXQ910, they cannot be.
        """
        if self.shape == layout.shape:
            return self._settings.start(layout)
        if not _expands(self.shape, layout.shape):
            what = f"an analyzer of shape {self.shape} for ranges of shape {layout.shape}"
            raise ShapeMismatchError("FXQ910", what, fix="give both the same shape")
        return _Coarser(self._settings.start(self._layout), self._layout, layout.shape)

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """Lower and upper end of the range."""
        if not isinstance(statistics, _Coarser):
            return self._settings.range(statistics, grid)
        found = self._settings.range(statistics.inner, grid)
        return None if found is None else (
            found[0].expand(statistics.shape), found[1].expand(statistics.shape),
        )  # fmt: skip

    # what AIMET documents -------------------------------------------------------------------------

    @torch.no_grad()
    def update_stats(self, input_tensor: Tensor) -> Statistics:
        """Take in a tensor.

        Raises:
            ShapeMismatchError: FXQ404, it has another shape.
        """
        if self._seen is None:
            self._seen = self._settings.start(self._layout)
        x = input_tensor.detach().float()
        self._seen.update(x, *self._layout.extremes(x))
        return self._seen

    def reset_stats(self) -> None:
        """Forget what was seen."""
        self._seen = None

    def compute_encodings(
        self, num_steps: float | None = None, is_symmetric: bool = False, **older: Any
    ) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the range of what was seen, with zero on the grid.

        Args:
            num_steps: steps of the grid, 255 for 8 bits; once called `num_quant_bins`.
            is_symmetric: whether the zero point lies in the middle.
            older: `num_quant_bins`.

        Raises:
            StatisticsNotFoundError: FXQ909, nothing was seen.
            QuantizationError: FXQ911, there are no steps.
        """
        return self._ends(self._seen, _steps(num_steps, older), is_symmetric)

    def compute_dynamic_encodings(
        self,
        input_tensor: Tensor,
        num_steps: float | None = None,
        is_symmetric: bool = False,
        **older: Any,
    ) -> tuple[Tensor, Tensor]:
        """The same for one tensor, whatever was seen before.

        Args:
            input_tensor: the tensor, of the shape that `update_stats` takes.
            num_steps: as for `compute_encodings`.
            is_symmetric: as for `compute_encodings`.
            older: as for `compute_encodings`.

        Raises:
            ShapeMismatchError: FXQ404, it has another shape.
            QuantizationError: FXQ911, there are no steps.
        """
        kept, self._seen = self._seen, None
        try:
            seen = self.update_stats(input_tensor)
        finally:
            self._seen = kept
        low, high = self._ends(seen, _steps(num_steps, older), is_symmetric)
        return low.to(input_tensor.dtype), high.to(input_tensor.dtype)

    def _ends(self, seen: Statistics | None, steps: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        qmin = -((steps + 1) // 2) if symmetric else 0
        grid = IntegerRange(qmin, qmin + steps, symmetric)
        found = None if seen is None else self._settings.range(seen, grid)
        if found is None:
            what = f"{type(self).__name__} has seen nothing"
            raise StatisticsNotFoundError("FXQ909", what, fix="call update_stats(tensor) before")
        low, high = found[0].clamp(max=0.0), found[1].clamp(min=0.0)
        scale = grid.scale(low, high)
        zero = grid.zero_point(low, scale)
        return (grid.qmin - zero) * scale, (grid.qmax - zero) * scale


class _Coarser:
    """Statistics of fewer ranges than the quantizer has, which have them in common."""

    def __init__(self, inner: Statistics, layout: Layout, shape: tuple[int, ...]) -> None:
        self.inner, self.layout, self.shape = inner, layout, shape

    def update(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Take in one tensor."""
        self.inner.update(x, *self.layout.extremes(x))


def _expands(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(n in (1, m) for n, m in pairs)


def _steps(given: float | None, older: dict[str, Any]) -> int:
    steps = older.pop("num_quant_bins", given)
    if older:
        msg = f"unknown arguments: {', '.join(older)}"
        raise TypeError(msg)
    if steps is None or steps <= 0:
        what = f"a grid of {steps} steps"
        raise QuantizationError("FXQ911", what, fix="pass 2 ** bits - 1 steps")
    return int(steps)


class MinMaxEncodingAnalyzer(EncodingAnalyzer):
    """The whole range."""

    def __init__(self, shape: Sequence[int] | int, block_size: Sequence[int] | None = None) -> None:
        super().__init__(shape, MinMax(), block_size)


class PercentileEncodingAnalyzer(EncodingAnalyzer):
    """Leaves out a share of the values at both ends.

    Args:
        shape: as of all analyzers.
        num_bins: bins of the histogram.
        percentile: from 50 to 100.
        block_size: as of all analyzers.
    """

    def __init__(
        self,
        shape: Sequence[int] | int,
        num_bins: int = 2048,
        percentile: float = 100,
        block_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__(shape, Percentile(percentile, _bins(num_bins)), block_size)

    @property
    def percentile(self) -> float:
        """Share of the values that is kept."""
        return self._settings.percentile  # type: ignore[attr-defined, no-any-return]

    def set_percentile(self, percentile: float) -> None:
        """Set the share that is kept."""
        self._settings = replace(self._settings, percentile=percentile)  # type: ignore[type-var]


class SqnrEncodingAnalyzer(EncodingAnalyzer):
    """The best ratio of signal to quantization noise.

    Args:
        shape: as of all analyzers.
        num_bins: bins of the histogram.
        asymmetric_delta_candidates: ends tried on each side of an asymmetric grid.
        symmetric_delta_candidates: ranges tried of a symmetric grid.
        offset_candidates: not needed: the ends of a range move on their own.
        max_parallelism: not needed: memory is bounded.
        gamma: weight of the error of clipped values.
        block_size: as of all analyzers.
    """

    def __init__(
        self,
        shape: Sequence[int] | int,
        num_bins: int = 2048,
        *,
        asymmetric_delta_candidates: int = 17,
        symmetric_delta_candidates: int = 101,
        offset_candidates: int = 21,
        max_parallelism: int = 64,
        gamma: float = 3.0,
        block_size: Sequence[int] | None = None,
    ) -> None:
        settings = Sqnr(
            bins=_bins(num_bins), candidates=symmetric_delta_candidates,
            pairs=asymmetric_delta_candidates, gamma=gamma,
        )  # fmt: skip
        super().__init__(shape, settings, block_size)


class TfEnhancedEncodingAnalyzer(SqnrEncodingAnalyzer):
    """`SqnrEncodingAnalyzer` as AIMET's scheme "tf_enhanced" sets it."""

    def __init__(self, shape: Sequence[int] | int, block_size: Sequence[int] | None = None) -> None:
        super().__init__(shape, 512, block_size=block_size)


def _bins(number: int) -> int:
    if number < 1:
        raise QuantizationError("FXQ911", f"a histogram of {number} bins", fix="pass 2048")
    return number


MinMaxEncodingAnalyzer.register(MinMax)
PercentileEncodingAnalyzer.register(Percentile)
SqnrEncodingAnalyzer.register(Sqnr)
