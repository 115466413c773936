"""Looking at models: what will be quantized, and why."""
