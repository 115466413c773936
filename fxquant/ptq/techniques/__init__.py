"""The documented post-training techniques by their names, on the walk and the solvers."""
