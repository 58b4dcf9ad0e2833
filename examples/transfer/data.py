"""The pictures of each phone: digits that the base has never seen, a quarter of them a phone."""

from __future__ import annotations

from torch.utils.data import TensorDataset

from examples.digits.data import PHONES, quarter
from examples.transfer.model import KNOWN, digits

TESTED = 180


def device_data(device: str) -> tuple[TensorDataset, TensorDataset]:
    """Return (train, test) of one phone: its quarter, and pictures that no phone has."""
    pictures, labels = digits()
    new = labels >= KNOWN
    pictures, labels = pictures[new], labels[new] - KNOWN
    mine = slice(TESTED + quarter(device), None, PHONES)
    return (TensorDataset(pictures[mine], labels[mine]), TensorDataset(pictures[:TESTED], labels[:TESTED]))
