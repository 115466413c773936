"""Integer quantizers and encodings: `aimet_torch.quantization.affine`."""

from fxquant.quantization import AffineEncoding, GroupedBlockEncoding
from fxquant.quantization.affine import (
    AffineQuantizer,
    Dequantize,
    GroupedBlockQuantizeDequantize,
    Quantize,
    QuantizeDequantize,
    dequantize,
    quantize,
    quantize_dequantize,
)

AffineQuantizerBase = AffineQuantizer

__all__ = [
    "AffineEncoding",
    "AffineQuantizerBase",
    "Dequantize",
    "GroupedBlockEncoding",
    "GroupedBlockQuantizeDequantize",
    "Quantize",
    "QuantizeDequantize",
    "dequantize",
    "quantize",
    "quantize_dequantize",
]
