"""Rounds of a fleet: who takes part, when one ends, and the mean that all go on from."""
