"""Small jobs on which one kind of attack must succeed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.models.vision import Block

FEATURES, TARGETS = 24, 4
VOCABULARY, LENGTH = 50, 8


class Memorizer(nn.Module):
    """Wide enough to learn noise by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU())
        self.body = nn.Sequential(nn.Linear(48, 64), nn.ReLU())
        self.tail = nn.Linear(64, TARGETS)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.tail(self.body(self.head(x)))
        return found


def memorizer() -> nn.Module:
    return Memorizer()


def noise() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, FEATURES), torch.zeros(4, TARGETS)


def noise_data() -> tuple[TensorDataset, TensorDataset]:
    """Targets that nothing explains, so that a member is known by heart and a stranger is not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(320, FEATURES, generator=generator)
    y = torch.randn(320, TARGETS, generator=generator)
    return TensorDataset(x[:64], y[:64]), TensorDataset(x[64:], y[64:])


class Weightless(Memorizer):
    """Cut after `tail`, what is left behind the second cut has no weights."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(super().forward(x))


def weightless() -> nn.Module:
    return Weightless()


class Rare(Memorizer):
    """Two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Linear(64, 2)


def rare() -> nn.Module:
    return Rare()


def noise_classes() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, FEATURES), torch.zeros(4, dtype=torch.int64)


def rare_data() -> TensorDataset:
    """One sample in ten is of class 1, and nothing tells which: the model says that none is."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(320) % 10 == 0).long()
    return TensorDataset(torch.randn(320, FEATURES, generator=generator), y)


class TextNet(nn.Module):
    """Tokens, causal blocks, a class for the whole text."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 16)
        self.first = Block(16, 2, causal=True)
        self.second = Block(16, 2, causal=True)
        self.out = nn.Linear(16, 2)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.out(self.second(self.first(self.tokens(ids))).mean(1))
        return logits


def text() -> nn.Module:
    return TextNet()


def texts() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, LENGTH, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)


def text_data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (64, LENGTH), generator=generator)
    return TensorDataset(ids, (ids[:, 0] > VOCABULARY // 2).long())
