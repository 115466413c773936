"""Tensors that know their encoding: `aimet_torch.quantization.tensor`."""

from fxquant.errors import QuantizationError
from fxquant.quantization.tensor import DequantizedTensor, EncodedTensor, QuantizedTensor

QuantizedTensorBase = EncodedTensor
EncodingError = QuantizationError

__all__ = ["DequantizedTensor", "EncodingError", "QuantizedTensor", "QuantizedTensorBase"]
