"""Choosing where to cut: what each cut costs, measured, and which is best on a device and its link.

`costs` times a model's operators, `flow` says what crosses at every place, `correlation` how much of the
inputs shows there, `choice` predicts a step's time everywhere and picks, `planner` puts them together.
"""
