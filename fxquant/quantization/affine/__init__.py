"""Integer quantizers and their functional forms."""

from fxquant.quantization.affine.affine_quantizer import AffineQuantizer
from fxquant.quantization.affine.bias import BiasQuantizeDequantize
from fxquant.quantization.affine.functional import dequantize, quantize, quantize_dequantize
from fxquant.quantization.affine.grouped import GroupedBlockQuantizeDequantize
from fxquant.quantization.affine.quantizers import Dequantize, Quantize, QuantizeDequantize

__all__ = [
    "AffineQuantizer",
    "BiasQuantizeDequantize",
    "Dequantize",
    "GroupedBlockQuantizeDequantize",
    "Quantize",
    "QuantizeDequantize",
    "dequantize",
    "quantize",
    "quantize_dequantize",
]
