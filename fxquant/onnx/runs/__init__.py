"""What a graph computes in several runs: shapes, constants, what varies and what is random."""
