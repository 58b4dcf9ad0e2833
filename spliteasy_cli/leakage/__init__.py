"""The leakage gate: a training whose wire is recorded, and the attacks on it."""
