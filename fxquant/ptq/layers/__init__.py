"""The quantized weights of a graph: one matrix each, however they are stored and used."""
