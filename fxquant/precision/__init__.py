"""The precision of values: which grids a kernel reads, and how their bits are changed together."""
