"""Parts of the calibration audit: the run, its counts, what they say, bounds of integer sums."""
