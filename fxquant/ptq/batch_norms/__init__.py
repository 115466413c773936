"""Batch norms: folded into layers or into steps, and their statistics taken anew."""
