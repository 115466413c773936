"""ONNX files: read within limits, written whole."""
