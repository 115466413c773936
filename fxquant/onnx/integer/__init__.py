"""The exact integer executor: what onnxruntime's default optimized CPU run computes, bit for bit."""

from fxquant.onnx.integer.model import IntegerModel, Placed

__all__ = ["IntegerModel", "Placed"]
