"""A convolutional base that was trained before on other pictures and is frozen, with adapters that train."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, RANK = 32, 8
KNOWN = 5
"""The base knows the digits below this one; phones learn the others."""


class Block(nn.Module):
    """A convolution of the base, and beside it an adapter, which adds nothing until it has trained."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.base = nn.Conv2d(WIDTH, WIDTH, 3, stride=stride, padding=1)
        self.down = nn.Conv2d(WIDTH, RANK, 1, stride=stride, bias=False)
        self.up = nn.Conv2d(RANK, WIDTH, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.base(x) + self.up(self.down(x)))


class Reader(nn.Module):
    """Digits 5 to 9 from pictures [B, 1, 8, 8]: a new stem, the base, and a new classifier.

    The phone keeps stem and classifier. Were the stem the base's own, then whoever knows the base would see
    the pictures in what the stem sends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1), nn.ReLU())
        self.blocks = nn.Sequential(Block(), Block(stride=2), Block())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classifier = nn.Linear(4 * WIDTH, KNOWN)

    def forward(self, picture: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.pool(self.blocks(self.stem(picture))))
        return scores


def build() -> nn.Module:
    """The model as phones begin it. A base of your own is loaded here from its file."""
    model, base = Reader(), trained_base()
    for own, other in zip(model.blocks, base.blocks, strict=True):
        assert isinstance(own, Block)
        assert isinstance(other, Block)
        own.base.load_state_dict(other.base.state_dict())
        own.base.requires_grad_(False)
    return model


def trained_base() -> Reader:
    """Stands for a pretrained model: the same layers after some seconds on the digits 0 to 4."""
    pictures, labels = digits()
    pictures, labels = pictures[labels < KNOWN], labels[labels < KNOWN]
    base = Reader()
    optimizer = torch.optim.Adam(base.parameters(), lr=0.003, foreach=False)
    for _ in range(6):
        for rows in torch.randperm(len(labels)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(base(pictures[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return base


def digits() -> tuple[Tensor, Tensor]:
    """All pictures, float32 [N, 1, 8, 8] from 0 to 1, and their digits."""
    found = load_digits()
    pictures = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    return pictures, torch.tensor(found.target, dtype=torch.int64)


def example() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
