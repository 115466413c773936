"""Walks over a simulated graph and its float model, all data at each node."""
