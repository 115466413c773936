"""How a range is chosen from observed tensors: settings (`MinMax`, ...) apart from statistics.

An analyzer is a frozen set of options and may be shared; what was seen lives in the statistics that
it starts for each quantizer.
"""

from fxquant.quantization.analyzers.base import (
    EncodingAnalyzer,
    MinMax,
    MinMaxStatistics,
    Statistics,
)
from fxquant.quantization.analyzers.histogram import Histogram
from fxquant.quantization.analyzers.percentile import Percentile
from fxquant.quantization.analyzers.sqnr import Sqnr

__all__ = [
    "EncodingAnalyzer",
    "Histogram",
    "MinMax",
    "MinMaxStatistics",
    "Percentile",
    "Sqnr",
    "Statistics",
]
