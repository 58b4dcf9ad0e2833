"""The digits of each phone: some of the ten only, as people write some things often and others never.

This stands for private data: it runs on the device, and only there.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from examples.digits.data import Shifted, training_and_test_images

DIGITS = ((0, 1, 2, 3), (3, 4, 5), (5, 6, 7), (7, 8, 9, 0))
IMAGES = 420
"""What each phone has, evenly of its digits."""


def device_data(device: str) -> tuple[Shifted, TensorDataset]:
    """Return (train, test) of one phone: images of its own digits to train on, and of all ten to test."""
    images, labels, test_images, test_labels = training_and_test_images()
    mine = _images_of(DIGITS[number_of(device)], labels)
    return Shifted(images[mine], labels[mine]), TensorDataset(test_images, test_labels)


def number_of(device: str) -> int:
    """Return which phone a device is: phone-1 to phone-4 have other digits each, and phone-5 those of
    phone-1.
    """
    numbered = re.search(r"(\d+)$", device)
    return (int(numbered[1]) - 1) % len(DIGITS) if numbered else len(device) % len(DIGITS)


def _images_of(digits: tuple[int, ...], labels: Tensor) -> Tensor:
    """Positions of as many images of each digit: the first ones, or the last ones of a phone's first digit.

    So two phones that have one digit in common have other images of it.
    """
    each = IMAGES // len(digits)
    places = [torch.nonzero(labels == digit).flatten() for digit in digits]
    return torch.cat([found[-each:] if n == 0 else found[:each] for n, found in enumerate(places)])
