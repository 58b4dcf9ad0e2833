"""Secret initial weights, records of a training, attacks on what crosses the cut, and limits on what they may
reach."""
