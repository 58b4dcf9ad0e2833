"""Whole trainings under a virtual clock and seeded faults: real machines, shells, transport, store."""
