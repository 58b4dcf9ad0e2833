"""One thread, and a small job to plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from spliteasy.job import JobSpec, parse_job

_NUMBERS = count()

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Sequential(nn.Linear(6, 200), nn.Tanh())
        self.narrow = nn.Sequential(nn.Linear(200, 8), nn.Tanh())
        layers = nn.Linear(8, 400), nn.Tanh(), nn.Linear(400, 400), nn.Tanh(), nn.Linear(400, 8)
        self.heavy = nn.Sequential(*layers)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.heavy(self.narrow(self.wide(x))))


def build():
    return Net()


def example():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 6, generator=generator), torch.arange(32) % 3


def alike():
    return torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64)
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def new_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., JobSpec]:
    """Writes a model into `tmp_path` and gives a job of it; keyword arguments are its `[plan]`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(cuts: Any = ("wide", "heavy"), example: str = "example", **plan: Any) -> JobSpec:
        module = f"planned_{next(_NUMBERS)}"
        (tmp_path / f"{module}.py").write_text(MODEL)
        single = {"share_labels": True} if len(cuts) == 1 else {}
        return parse_job(
            {
                "name": "planned",
                "batch_size": 16,
                "epochs": 1,
                "model": {
                    "factory": f"{module}:build", "example": f"{module}:{example}", "cuts": cuts,
                },
                "loss": {"name": "cross_entropy"},
                "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
                "plan": plan,
                **single,
            }
        )  # fmt: skip

    return make
