"""Tracing: one real run of a model, recorded as an fx graph, and the proof that it is the model."""
