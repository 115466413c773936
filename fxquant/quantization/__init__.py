"""Quantizers, encodings and tensors that carry them: `import fxquant.quantization as Q`."""

from fxquant.quantization import affine, analyzers, float
from fxquant.quantization.encodings import (
    AffineEncoding,
    Encoding,
    FloatEncoding,
    GroupedBlockEncoding,
)
from fxquant.quantization.quantizer_base import QuantizerBase
from fxquant.quantization.scheme import QuantScheme, analyzer_for
from fxquant.quantization.tensor import DequantizedTensor, QuantizedTensor

__all__ = [
    "AffineEncoding",
    "DequantizedTensor",
    "Encoding",
    "FloatEncoding",
    "GroupedBlockEncoding",
    "QuantScheme",
    "QuantizedTensor",
    "QuantizerBase",
    "affine",
    "analyzer_for",
    "analyzers",
    "float",
]
