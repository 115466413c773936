"""Kernels of the integer executor: onnxruntime's CPU arithmetic, step by step."""
