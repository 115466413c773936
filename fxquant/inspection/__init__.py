"""What a given simulation is: rows, kernels, errors of its nodes, the audit of its data, report."""
