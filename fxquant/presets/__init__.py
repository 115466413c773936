"""Configurations by name: `config="per_tensor"` instead of a file."""
