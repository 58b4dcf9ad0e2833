"""What can be computed from what crosses the cut: records of a training, attacks on them, and limits."""
