"""A replica is what is trained: a body with its optimizer, its log, its snapshots and its owner."""
