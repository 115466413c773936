"""Mixed precision: which grids get how many bits, by what they cost and what they give."""
