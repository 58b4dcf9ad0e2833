"""Alternatives that a user might pick: the same split training over other transports, each as small as it
gets."""
