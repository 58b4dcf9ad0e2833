"""Handwritten digits: scikit-learn's real 8x8 images, a quarter of them on each of four phones."""

from examples.digits.data import device_data
from examples.digits.model import build, example

__all__ = ["build", "device_data", "example"]
