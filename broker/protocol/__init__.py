"""The messages, their bytes, and the frames that they travel in."""
