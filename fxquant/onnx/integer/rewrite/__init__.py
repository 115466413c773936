"""Rewrites of the integer executor: from a QDQ file to the kernels that onnxruntime runs."""
