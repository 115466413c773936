"""From a float model and data to a proven file: which techniques help is tried, not known."""
