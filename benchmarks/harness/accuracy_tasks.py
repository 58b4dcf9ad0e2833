"""The tasks of `benchmarks.accuracy`: the digits example, and digits that are harder to read.

Both are made of scikit-learn's 1797 real images; the harder one turns, scales, moves and blurs each by noise,
in training at every epoch, in the test once for all. The model and the 360 images of a phone
are the example's.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from examples.digits.data import device_data as digits
from examples.digits.model import DigitNet
from spliteasy.job import load_job_file

ROOT = Path(__file__).parents[2]
CANVAS = 12
"""Pixels a side: an 8x8 image has room to turn on it."""
TURN_DEGREES, SCALE, MOVE, NOISE = 35.0, 0.25, 0.15, 0.15
TEST_COPIES = 4
"""Distorted copies of each of the 357 test images: an accuracy then moves in steps of 0.07 points."""

Items = Dataset[tuple[Tensor, Tensor]]


class Distorted(Items):
    """Images distorted at random: the agent seeds torch before each item."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        """`images`: float32 [count, 1, 8, 8]."""
        margin = (CANVAS - images.shape[-1]) // 2
        self._images = F.pad(images, (margin,) * 4)
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return distort(self._images[index : index + 1])[0], self._labels[index]


def distort(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Turn, scale, move and add noise, each image by draws of its own: float32 [count, 1, side, side]."""
    draws = torch.rand(len(images), 4, generator=generator) * 2 - 1
    angle, scale = draws[:, 0] * math.radians(TURN_DEGREES), 1 + SCALE * draws[:, 1]
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    moved = (draws[:, 2:] * MOVE)[:, :, None]
    grid = F.affine_grid(
        torch.cat([turned * scale[:, None, None], moved], 2), list(images.shape), align_corners=False
    )
    seen = F.grid_sample(images, grid, align_corners=False)
    return seen + NOISE * torch.randn(seen.shape, generator=generator)


def data_distorted(device: str) -> tuple[Distorted, TensorDataset]:
    """Return (train, test) of a phone."""
    plain, _ = digits(device)
    return Distorted(plain.images[:, :, 1:-1, 1:-1], plain.labels), _test()


@cache
def _test() -> TensorDataset:
    images, labels = digits("phone-1")[1].tensors
    copies = F.pad(images, ((CANVAS - images.shape[-1]) // 2,) * 4).repeat(TEST_COPIES, 1, 1, 1)
    # A generator of its own, because several agents' threads may come here at once.
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(distort(copies, generator), labels.repeat(TEST_COPIES))


def example_distorted() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, 1, CANVAS, CANVAS), torch.zeros(4, dtype=torch.int64)


make_distorted = DigitNet


def job_of(task: str, seed: int, codec: str, epochs: int | None = None) -> dict[str, Any]:
    """Return the job file's content: the example's, evaluated at its end only."""
    spec = load_job_file(ROOT / "examples/digits/job.toml")
    job: dict[str, Any] = spec.model_dump(mode="json", exclude_none=True)
    job |= {"name": "accuracy", "seed": seed, "evaluation": {"every_epochs": 0}}
    job["link"] = {"activations": codec, "gradients": codec}
    if task == "distorted":
        module = __name__
        job["model"] |= {"factory": f"{module}:make_distorted", "example": f"{module}:example_distorted"}
    if epochs is not None:
        job["epochs"] = epochs
    job["schedule"]["steps"] = 12 * job["epochs"]
    return job


DATA = {"digits": "examples.digits:device_data", "distorted": f"{__name__}:data_distorted"}
