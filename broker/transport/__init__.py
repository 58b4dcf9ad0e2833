"""The transport seam, the in-process transport, and what every transport shares."""
