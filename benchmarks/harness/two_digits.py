"""The digits as two classes, below five or not, for a defence that knows of two only."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.data import TensorDataset

from examples.digits.data import Shifted
from examples.digits.data import device_data as ten
from examples.digits.model import DigitNet


def build() -> nn.Module:
    return DigitNet(classes=2)


def device_data(device: str) -> tuple[Shifted, TensorDataset]:
    """Return (train, test) of one phone, as the example has them, with labels 0 and 1."""
    train, test = ten(device)
    train.labels = (train.labels >= 5).long()
    images, labels = test.tensors
    return train, TensorDataset(images, (labels >= 5).long())


def job_of(digits: dict[str, Any]) -> dict[str, Any]:
    """Return the digits job's content for two classes."""
    model = digits["model"] | {"factory": f"{__name__}:build"}
    return digits | {"name": "two-digits", "model": model}
