"""Parity: the proof that onnxruntime computes what the simulation computes."""
