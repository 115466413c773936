"""Graphs: recording a model, describing its nodes, rewriting and printing them."""
