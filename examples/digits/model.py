"""The model of the digits job: plain PyTorch, nothing in it knows that it will be split."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DigitNet(nn.Module):
    """A small convolutional network with batch norm.

    The job cuts it after `stem` and after `pool`: the phone keeps `stem` and `classifier`, the server
    gets `blocks` and `pool`.
    """

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = convolution(1, width)
        self.blocks = nn.Sequential(
            convolution(width, 2 * width, stride=2), convolution(2 * width, 4 * width)
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classifier = nn.Linear(16 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """float32 [batch, 1, 8, 8] to float32 [batch, classes] logits."""
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(image))))
        return logits


def convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def build() -> nn.Module:
    """Return the job's `model.factory`; torch is seeded with the job's seed before it is called."""
    return DigitNet()


def example() -> tuple[Tensor, Tensor]:
    """Return the job's `model.example`: (inputs, targets) whose shapes and dtypes the data will have."""
    return torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
