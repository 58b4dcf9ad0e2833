"""Samples with a length of their own: the graph, the job, both sides."""
