"""Jobs whose labels are partly left out: small models, data and losses by kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from spliteasy.job import Job, parse_job

WORDS, LENGTH, CLASSES, SAMPLES = 12, 5, 4, 20
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0])


class Tagger(nn.Module):
    """Scores [B, classes, length] for each word of a sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Embedding(WORDS, 6)
        self.middle = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.out = nn.Linear(6, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        scores: Tensor = self.out(self.middle(self.enter(words)))
        return scores.transpose(1, 2)


def build() -> nn.Module:
    return Tagger()


def example() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, LENGTH, dtype=torch.int64), torch.zeros(4, LENGTH, dtype=torch.int64)


def device_data(device: str) -> tuple[TensorDataset, TensorDataset]:
    """Every other sentence has no label, others have some."""
    generator = torch.Generator().manual_seed(len(device))
    words = torch.randint(WORDS, (SAMPLES, LENGTH), generator=generator)
    tags = words % CLASSES
    tags[::2] = -100
    tags[1::4, :3] = -100
    return TensorDataset(words, tags), TensorDataset(words[:7], tags[:7])


def unlabelled_data(device: str) -> tuple[TensorDataset, TensorDataset]:
    train, test = device_data(device)
    return (
        TensorDataset(train.tensors[0], torch.full_like(train.tensors[1], -100)),
        TensorDataset(test.tensors[0], torch.full_like(test.tensors[1], -100)),
    )


def weighted(scores: Tensor, tags: Tensor) -> Tensor:
    return 0.5 * F.cross_entropy(scores, tags, weight=WEIGHTS, label_smoothing=0.1)


def zero_is_padding(scores: Tensor, tags: Tensor) -> Tensor:
    return F.nll_loss(F.log_softmax(scores, dim=1), tags.clamp(min=0), ignore_index=0)


def by_hand(scores: Tensor, tags: Tensor) -> Tensor:
    """The same mean, so written that nobody can read the divisor from the graph's operators."""
    known = (tags >= 0).float()
    each = F.cross_entropy(scores, tags.clamp(min=0), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def summed(scores: Tensor, tags: Tensor) -> Tensor:
    return F.cross_entropy(scores, tags, reduction="sum")


def regularised(scores: Tensor, tags: Tensor) -> Tensor:
    return F.cross_entropy(scores, tags) + 0.01 * scores.pow(2).mean()


def job_of(loss: dict[str, Any], *, micro_batches: int, single: bool = False) -> Job:
    return Job.create(
        parse_job(
            {
                "name": "labelled",
                "seed": 3,
                "batch_size": 6,
                "micro_batches": micro_batches,
                "epochs": 2,
                "share_labels": single,
                "model": {
                    "factory": "tests.device.labelled:build",
                    "example": "tests.device.labelled:example",
                    "cuts": ["enter"] if single else ["enter", "middle"],
                },
                "loss": loss,
                "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.9},
            }
        )
    )
