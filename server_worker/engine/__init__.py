"""The part of a worker that computes bodies."""
