"""What can be computed from what crosses the cut: secret initial weights, records of a training, attacks on
them, and limits.
"""
