"""Checks before a request reaches a session: who may send what, and how much."""
