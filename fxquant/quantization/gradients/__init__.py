"""What a gradient is where the function that the simulation computes has none to use."""
