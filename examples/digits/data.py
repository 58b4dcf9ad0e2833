"""The digits of each phone: a fixed, balanced quarter of the training images, and a common test set.

This stands for private data: it runs on the device, and only there.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

PHONES = 4
TEST_IMAGES = 357
"""Of 1797; the other 1440 are 360 a phone."""


MOVES = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
"""Where an image is cut out of its padded self: in the middle, or a pixel off."""


class Shifted(Dataset[tuple[Tensor, Tensor]]):
    """Images moved by a pixel to one side, or not, at random: the agent seeds torch before each item."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = F.pad(images, (1, 1, 1, 1))
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        down, right = MOVES[int(torch.randint(len(MOVES), ()))]
        return self.images[index, :, down : down + 8, right : right + 8], self.labels[index]


def device_data(device: str) -> tuple[Shifted, TensorDataset]:
    """Return (train, test) of one phone: float32 [1, 8, 8] images from 0 to 1, int64 labels from 0 to 9."""
    images, labels, test_images, test_labels = training_and_test_images()
    mine = _order(labels)[quarter(device) :: PHONES]
    return Shifted(images[mine], labels[mine]), TensorDataset(test_images, test_labels)


def quarter(device: str) -> int:
    """Which quarter a device has: phone-1 to phone-4 have one each, other names one by their hash."""
    numbered = re.fullmatch(r"phone-([1-4])", device)
    if numbered:
        return int(numbered[1]) - 1
    return hashlib.sha256(device.encode()).digest()[0] % PHONES


def _order(labels: Tensor) -> Tensor:
    """Positions sorted by label: every fourth from any start is balanced."""
    return torch.argsort(labels, stable=True)


@cache
def training_and_test_images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(images, labels) to train on and to test with, the same on every device."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    train, test = train_test_split(
        range(len(labels)), test_size=TEST_IMAGES, stratify=digits.target, random_state=0
    )
    return images[train], labels[train], images[test], labels[test]
