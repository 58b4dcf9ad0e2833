"""The digits for DP-SGD: all 1440 training images on one device, and a network with group norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.digits.data import device_data as quarter
from spliteasy.job import JobSpec
from spliteasy.privacy.defences.dp import PoissonBatches
from spliteasy.runtime.randomness import Key

IMAGES = 1440


class PrivateNet(nn.Module):
    """The example's network, smaller and without batch norm: each sample is computed by itself."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU())
        self.middle = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(4, 2 * width), nn.ReLU()
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classifier = nn.Linear(8 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """float32 [batch, 1, 8, 8] to float32 [batch, classes] logits."""
        logits: Tensor = self.classifier(self.pool(self.middle(self.stem(image))))
        return logits


def build() -> nn.Module:
    return PrivateNet()


def device_data(device: str) -> tuple[TensorDataset, TensorDataset]:
    """Return (train, test): the images of all four phones, in the middle, and the common test set."""
    parts = [quarter(f"phone-{number}")[0] for number in range(1, 5)]
    images = torch.cat([part.images[:, :, 1:-1, 1:-1] for part in parts])
    return TensorDataset(images, torch.cat([part.labels for part in parts])), quarter(device)[1]


def example() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)


def job_of(*, epsilon: float, epochs: int, lr: float, seed: int = 1) -> dict[str, Any]:
    """Return the job file's content."""
    return {
        "name": "private-digits",
        "seed": seed,
        "batch_size": 400,
        "epochs": epochs,
        "model": {"factory": f"{__name__}:build", "example": f"{__name__}:example", "cuts": ["stem", "pool"]},
        "loss": {"name": "cross_entropy"},
        "optimizer": {"name": "sgd", "lr": lr, "momentum": 0.9},
        "evaluation": {"every_epochs": 0},
        "privacy": {"dp": {"epsilon": epsilon, "delta": 1e-5, "max_grad_norm": 1.0, "expected_batch": 256}},
    }


def poisson_of(spec: JobSpec) -> PoissonBatches:
    """The batches of a training on all images; who is in them does not matter."""
    return PoissonBatches(spec, IMAGES, Key(bytes(32)), device="phone-1")
