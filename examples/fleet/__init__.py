"""Handwritten digits on four phones of which none has seen all ten: together they train a model that has."""

from examples.digits.model import build, example
from examples.fleet.data import device_data

__all__ = ["build", "device_data", "example"]
