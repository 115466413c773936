"""The range with the smallest mean squared error."""

from __future__ import annotations

from dataclasses import dataclass

from fxquant.quantization.analyzers.sqnr import Sqnr


@dataclass(frozen=True)
class Mse(Sqnr):
    """Minimizes the plain squared error over a histogram: clipping counts like rounding.

    Args:
        bins: bins of the histogram of a tensor with one range.
        channel_bins: bins of the histogram of each range where there are several.
        candidates: ranges tried when one end moves (symmetric grids, or values of one sign).
        pairs: ends tried on each side when both move.
        gamma: weight of the error of clipped values.
    """

    pairs: int = 32
    gamma: float = 1.0
