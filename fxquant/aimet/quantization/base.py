"""Bases of quantizers and encodings: `aimet_torch.quantization.base`."""

from fxquant.quantization import Encoding, QuantizerBase

EncodingBase = Encoding

__all__ = ["EncodingBase", "QuantizerBase"]
