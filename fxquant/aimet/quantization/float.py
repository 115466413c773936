"""Floating-point quantizers: `aimet_torch.quantization.float`."""

from fxquant.quantization import FloatEncoding
from fxquant.quantization.float import FloatQuantizeDequantize

QuantizeDequantize = FloatQuantizeDequantize

__all__ = ["FloatEncoding", "FloatQuantizeDequantize", "QuantizeDequantize"]
