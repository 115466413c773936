"""How a range is chosen from observed tensors: settings (`MinMax`, ...) apart from statistics.

An analyzer is a frozen set of options and may be shared; what was seen lives in the statistics that
it starts for each quantizer. Statistics of parts of the data can be merged, exactly and in any
order (`Mergeable`); those of `MovingAverage`, which forgets, cannot.
"""

from fxquant.quantization.analyzers.entropy import Entropy
from fxquant.quantization.analyzers.histogram import Histogram
from fxquant.quantization.analyzers.min_max import (
    EncodingAnalyzer,
    Mergeable,
    MinMax,
    MinMaxStatistics,
    Statistics,
)
from fxquant.quantization.analyzers.moving_average import MovingAverage, MovingAverageStatistics
from fxquant.quantization.analyzers.mse import Mse
from fxquant.quantization.analyzers.percentile import Percentile
from fxquant.quantization.analyzers.sqnr import Sqnr

__all__ = [
    "EncodingAnalyzer",
    "Entropy",
    "Histogram",
    "Mergeable",
    "MinMax",
    "MinMaxStatistics",
    "MovingAverage",
    "MovingAverageStatistics",
    "Mse",
    "Percentile",
    "Sqnr",
    "Statistics",
]
