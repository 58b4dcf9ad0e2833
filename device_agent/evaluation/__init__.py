"""Evaluations on the test data of a device, and what they decide."""
