"""What a given simulation is: operators, grids, kernels, as rows, as a graph and as a summary."""
