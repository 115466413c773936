"""Post-training techniques: better weights and ranges without training."""
