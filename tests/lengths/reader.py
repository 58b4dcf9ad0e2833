"""A small language model whose texts have lengths of their own, its data, and jobs over it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spliteasy.job import Job, parse_job

CHARACTERS, LONGEST, SAMPLES, WIDTH = 11, 9, 14, 8

Text = dict[str, Tensor]


class Block(nn.Module):
    """Causal attention over the places that the mask shows, and dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.drop = nn.LayerNorm(WIDTH), nn.Dropout(dropout)

    def forward(self, x: Tensor, shown: Tensor) -> Tensor:
        length = x.shape[1]
        query, key, value = self.both(self.norm(x)).chunk(3, dim=-1)
        scores = query @ key.transpose(1, 2) / WIDTH**0.5
        allowed = torch.ones(length, length, dtype=torch.bool).tril() & shown[:, None, :].bool()
        scores = scores.masked_fill(~allowed, -1e9)
        done: Tensor = x + self.drop(self.out(scores.softmax(dim=-1) @ value))
        return done


class Reader(nn.Module):
    """Scores [B, length, characters] of what follows each character; the mask crosses into the body."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.enter, self.places = nn.Embedding(CHARACTERS, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.first, self.second, self.third = Block(dropout), Block(dropout), Block(dropout)
        self.leave = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.enter(ids) + self.places(torch.arange(ids.shape[1]))
        for block in (self.first, self.second, self.third):
            x = block(x, mask)
        scores: Tensor = self.leave(x)
        return scores


class Unmasked(Reader):
    """Sends no mask: what comes before a character shows it all that it may see."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return super().forward(ids, torch.ones(ids.shape[0], ids.shape[1]))


class Whole(Reader):
    """Works at one length alone."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        if ids.shape[1] > 5:
            ids = ids + 0
        return super().forward(ids, mask) * (2.0 if ids.shape[1] == LONGEST else 1.0)


class Recurrent(nn.Module):
    """An LSTM, which torch.export can't trace at any length."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle = nn.Embedding(CHARACTERS, WIDTH), nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.leave = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x, _ = self.middle(self.enter(ids) * mask[:, :, None])
        scores: Tensor = self.leave(x)
        return scores


def build() -> nn.Module:
    return Reader()


def with_dropout() -> nn.Module:
    return Reader(0.2)


def without_mask() -> nn.Module:
    return Unmasked()


def of_one_length() -> nn.Module:
    return Whole()


def recurrent() -> nn.Module:
    return Recurrent()


def example() -> tuple[tuple[Tensor, Tensor], Tensor]:
    ids = torch.arange(2 * LONGEST).reshape(2, LONGEST) % CHARACTERS
    return (ids, torch.ones_like(ids)), ids


def texts(count: int, seed: int) -> list[Text]:
    """Texts of 1 to `LONGEST` characters, of which some places have no label."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        length = 1 + number * 4 % LONGEST
        ids = torch.randint(CHARACTERS, (length,), generator=generator)
        labels = torch.where(torch.rand(length, generator=generator) < 0.2, -100, ids)
        found.append({"ids": ids, "mask": torch.ones_like(ids), "next": labels})
    return found


def device_data(device: str) -> tuple[list[Text], list[Text]]:
    return texts(SAMPLES, len(device)), texts(5, 99)


def next_character(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=-100)


def of_all_places(scores: Tensor, labels: Tensor) -> Tensor:
    """Counts padding: its mean is over all places."""
    each = F.cross_entropy(scores.flatten(0, 1), labels.flatten().clamp(min=0), reduction="none")
    return each.mean()


def settings(*, single: bool = False, **changes: Any) -> dict[str, Any]:
    """The job as a job file says it. `changes` are of the top level, and `model` adds to the model's."""
    model = {
        "factory": "tests.lengths.reader:build",
        "example": "tests.lengths.reader:example",
        "cuts": ["first"] if single else ["first", "second"],
        "inputs": ["ids", "mask"],
        "targets": ["next"],
        "max_length": LONGEST,
        "pad": {"ids": 0, "mask": 0, "next": -100},
        **changes.pop("model", {}),
    }
    return {
        "name": "reader",
        "seed": 3,
        "batch_size": 6,
        "epochs": 2,
        "share_labels": single,
        "share_inputs": ["mask"],
        "loss": {"function": "tests.lengths.reader:next_character"},
        "optimizer": {"name": "adam", "lr": 0.05},
        "model": {name: value for name, value in model.items() if value is not None},
        **changes,
    }


def job_of(*, single: bool = False, **changes: Any) -> Job:
    return Job.create(parse_job(settings(single=single, **changes)))
