"""Fleets whose devices are all in this process: how they begin, and faults that `parity` tries them with."""
