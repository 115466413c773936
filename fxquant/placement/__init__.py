"""Placement: which values of a graph get a grid, which share one, and why."""
