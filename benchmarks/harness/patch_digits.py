"""The digits as patches: a small transformer whose body treats all patches alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, PATCH, WIDTH = 8, 2, 32
PATCHES = (SIDE // PATCH) ** 2


class Mixing(nn.Module):
    """Attention between patches, then two layers for each of them. It knows of no positions."""

    def __init__(self, width: int = WIDTH, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.all_three, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, width = x.shape
        made = self.all_three(self.before(x)).reshape(samples, tokens, 3, self.heads, width // self.heads)
        query, key, value = made.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
        x = x + self.joined(mixed)
        out: Tensor = x + self.mlp(self.between(x))
        return out


class Patches(nn.Module):
    """Patches of 2 × 2 pixels, each with its position and a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.positions = nn.Parameter(0.1 * torch.randn(1, PATCHES, WIDTH))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.cut(image).flatten(2).transpose(1, 2) + self.positions)
        return out


class PatchNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = Patches()
        self.body = nn.Sequential(Mixing(), Mixing())
        self.last = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.classifier = nn.Linear(WIDTH, classes)

    def forward(self, image: Tensor) -> Tensor:
        """float32 [batch, 1, 8, 8] to float32 [batch, classes] logits."""
        logits: Tensor = self.classifier(self.last(self.body(self.stem(image))).mean(1))
        return logits


def build() -> nn.Module:
    return PatchNet()


def job_of(seed: int, epochs: int | None = None, **privacy: Any) -> dict[str, Any]:
    """Return the job file's content."""
    return {
        "name": "patch-digits",
        "seed": seed,
        "batch_size": 30,
        "epochs": epochs or 30,
        "model": {
            "factory": f"{__name__}:build",
            "example": "examples.digits.model:example",
            "cuts": ["stem", "body"],
        },
        "loss": {"name": "cross_entropy"},
        "optimizer": {"name": "adam", "lr": 0.001},
        "evaluation": {"every_epochs": 0},
        "privacy": privacy,
    }
