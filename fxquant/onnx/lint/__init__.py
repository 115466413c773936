"""The lint of ONNX files: what `onnx.checker` lets through and runtimes fail on or get wrong."""
