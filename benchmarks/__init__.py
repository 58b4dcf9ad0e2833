"""Measurements of our own against bounds and against others; each prints ratios from one run."""
