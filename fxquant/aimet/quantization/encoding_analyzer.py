"""How ranges are chosen, with AIMET's arguments: `aimet_torch.quantization.encoding_analyzer`.

An analyzer of AIMET has the shape of its quantizer and keeps what it has seen. Those here do so
too, over analyzers of `fxquant.quantization.analyzers`, which are settings alone; given to a
quantizer, they behave like these.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.errors import CalibrationError
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


class StatisticsNotFoundError(CalibrationError, RuntimeError):
    """An analyzer is asked for a range before it has seen anything."""


class EncodingAnalyzer:
    """Settings of an analyzer, and what it has seen of one tensor.

    Args:
        shape: one range for each element of this shape, laid against the tensor from the right.
        settings: how the range is chosen.
        block_size: elements per block along each axis of `shape`, or None.
    """

    def __init__(
        self, shape: Sequence[int], settings: Settings, block_size: Sequence[int] | None = None
    ) -> None:
        self._layout = Layout(tuple(shape), None if block_size is None else tuple(block_size))
        self._settings = settings
        self._seen: Statistics | None = None

    # what a quantizer asks ------------------------------------------------------------------------

    def start(self, layout: Layout) -> Statistics:
        """Statistics of nothing."""
        return self._settings.start(layout)

    def range(self, statistics: Statistics, grid: IntegerRange) -> tuple[Tensor, Tensor] | None:
        """Lower and upper end of the range."""
        return self._settings.range(statistics, grid)

    # what AIMET documents -------------------------------------------------------------------------

    @torch.no_grad()
    def update_stats(self, input_tensor: Tensor) -> Statistics:
        """Take in a tensor."""
        if self._seen is None:
            self._seen = self.start(self._layout)
        x = input_tensor.detach().float()
        self._seen.update(x, *self._layout.extremes(x))
        return self._seen

    def reset_stats(self) -> None:
        """Forget what was seen."""
        self._seen = None

    def compute_encodings(self, num_steps: int, is_symmetric: bool) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the range of what was seen, with zero on the grid.

        Args:
            num_steps: steps of the grid, 255 for 8 bits.
            is_symmetric: whether the zero point lies in the middle.

        Raises:
            StatisticsNotFoundError: FXQ450, nothing was seen.
        """
        return self._range(self._seen, num_steps, is_symmetric)

    def compute_dynamic_encodings(
        self, input_tensor: Tensor, num_steps: int, is_symmetric: bool
    ) -> tuple[Tensor, Tensor]:
        """The same for one tensor, whatever was seen before."""
        other = type(self).__new__(type(self))
        other.__dict__ = {**self.__dict__, "_seen": None}
        return self._range(other.update_stats(input_tensor), num_steps, is_symmetric)

    def _range(
        self, seen: Statistics | None, num_steps: int, is_symmetric: bool
    ) -> tuple[Tensor, Tensor]:
        low = -((num_steps + 1) // 2) if is_symmetric else 0
        grid = IntegerRange(low, low + num_steps, is_symmetric)
        found = None if seen is None else self.range(seen, grid)
        if found is None:
            fix = "call update_stats(tensor) before"
            what = f"{type(self).__name__} has seen nothing"
            raise StatisticsNotFoundError("FXQ450", what, fix=fix)
        scale = grid.scale(found[0].clamp(max=0.0), found[1].clamp(min=0.0))
        zero = grid.zero_point(found[0].clamp(max=0.0), scale)
        return (grid.qmin - zero) * scale, (grid.qmax - zero) * scale


class MinMaxEncodingAnalyzer(EncodingAnalyzer):
    """The whole range."""

    def __init__(self, shape: Sequence[int], block_size: Sequence[int] | None = None) -> None:
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
        shape: Sequence[int],
        num_bins: int = 2048,
        percentile: float = 100,
        block_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__(shape, Percentile(percentile, num_bins), block_size)

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
        shape: Sequence[int],
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
            bins=num_bins, candidates=symmetric_delta_candidates,
            pairs=asymmetric_delta_candidates, gamma=gamma,
        )  # fmt: skip
        super().__init__(shape, settings, block_size)


class TfEnhancedEncodingAnalyzer(SqnrEncodingAnalyzer):
    """`SqnrEncodingAnalyzer` as AIMET's scheme "tf_enhanced" sets it."""

    def __init__(self, shape: Sequence[int], block_size: Sequence[int] | None = None) -> None:
        super().__init__(shape, 512, block_size=block_size)
