"""Quantizers, encodings and tensors: `import fxquant.aimet.quantization as Q`."""

from fxquant.aimet.quantization import affine, base, encoding_analyzer, float, tensor
from fxquant.aimet.quantization.tensor import (
    DequantizedTensor,
    EncodingError,
    QuantizedTensor,
    QuantizedTensorBase,
)

__all__ = [
    "DequantizedTensor",
    "EncodingError",
    "QuantizedTensor",
    "QuantizedTensorBase",
    "affine",
    "base",
    "encoding_analyzer",
    "float",
    "tensor",
]
