"""Following a running training on a terminal."""
