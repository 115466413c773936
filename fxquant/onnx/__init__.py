"""ONNX: lowering, encodings files, verification and the proof against onnxruntime."""

from fxquant.onnx.lower import lower
from fxquant.onnx.lowered import Fallback, Lowered, LoweredTensor
from fxquant.onnx.verify import VerifyReport, verify_file, verify_model

__all__ = [
    "Fallback",
    "Lowered",
    "LoweredTensor",
    "VerifyReport",
    "lower",
    "verify_file",
    "verify_model",
]
