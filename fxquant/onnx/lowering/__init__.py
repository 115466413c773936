"""Lowering: from an fx graph, float or quantized, to ONNX."""
