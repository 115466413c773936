"""onnxruntime: sessions, what it makes of this CPU and by which rules it fuses."""
