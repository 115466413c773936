"""One HTML file about a simulation: overview, folded graph, every node, runtime, environment."""
