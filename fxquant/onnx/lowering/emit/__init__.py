"""Emitters: how each row of the operator table is written in ONNX, a file for each family."""

from fxquant.onnx.lowering.emitters import emits, emits_class, emits_function

__all__ = ["emits", "emits_class", "emits_function"]
