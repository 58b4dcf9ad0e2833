"""A small language model with adapters, on public text that comes with Python."""
