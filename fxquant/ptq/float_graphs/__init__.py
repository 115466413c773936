"""Techniques for a float graph, before it is a simulation: what they share."""
