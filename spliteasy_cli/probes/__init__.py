"""Measurements of the pipeline and of the link to a broker, for `profile` and `plan`."""
