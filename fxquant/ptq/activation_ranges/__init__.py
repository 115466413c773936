"""Ranges of activations, chosen by what their errors cost at the model's outputs."""
