"""Questions to a simulation: what if, where first, and all values in a file."""
