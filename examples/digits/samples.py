"""The digits of one phone for a page in a browser: `python -m examples.digits.samples FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from examples.digits.data import PHONES, training_and_test_images

WHITE = 255


def samples(phone: int = 0, count: int = 360) -> str:
    """The first `count` digits of a phone's quarter, as JSON: bytes of each picture, and its label."""
    images, labels, *_ = training_and_test_images()
    mine = torch.argsort(labels, stable=True)[phone::PHONES]
    mine = mine[torch.randperm(len(mine), generator=torch.Generator().manual_seed(phone))][:count]
    pixels = (images[mine] * WHITE).round().to(torch.uint8).flatten(1)
    return json.dumps({"inputs": pixels.tolist(), "labels": labels[mine].tolist()})


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(samples())
