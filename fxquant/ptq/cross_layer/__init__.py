"""Cross-layer equalization: which channels may be scaled, and by how much."""
