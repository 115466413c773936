"""ONNX: lowering, encodings files, verification and the proof against onnxruntime."""

from fxquant.onnx.lint.verify import VerifyReport, verify_file, verify_model
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.lowering.result import Fallback, Lowered, LoweredTensor

__all__ = [
    "Fallback",
    "Lowered",
    "LoweredTensor",
    "VerifyReport",
    "lower",
    "verify_file",
    "verify_model",
]
