"""The exact integer executor: what onnxruntime's default CPU run computes, bit for bit."""

from fxquant.onnx.integer.model import IntegerModel, Placed
from fxquant.onnx.integer.simulation import IntegerSimulation

__all__ = ["IntegerModel", "IntegerSimulation", "Placed"]
