"""Tensors that more than one segment uses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spliteasy import split
from spliteasy.errors import CutError
from tests.models.sequences import GPT
from tests.splitting.parity import compare


class Rotary(nn.Module):
    """Angles from a buffer alone, computed once and used by every block, as language models do it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.enter, self.middle, self.out = (nn.Linear(8, 8) for _ in range(3))
        rates = 1.0 / 100 ** (torch.arange(8) / 8)
        if kind == "parameter":
            self.rates = nn.Parameter(rates)
        else:
            self.register_buffer("rates", rates, persistent=kind != "buffer")
        self.written = kind == "written buffer"

    def forward(self, x: Tensor) -> Tensor:
        turn = (torch.arange(x.shape[1])[:, None] * self.rates).cos()
        if self.written and self.training:
            with torch.no_grad():
                self.rates.mul_(0.9)
        for block in (self.enter, self.middle, self.out):
            x = block(torch.tanh(x) * turn)
        return x


@pytest.mark.parametrize("kind", ["buffer", "persistent buffer"])
def test_a_buffer_that_nothing_writes_is_public(kind: str) -> None:
    model = Rotary(kind).train()
    parts = split(model, torch.randn(2, 5, 8), ("enter", "middle"))
    assert [len(boundary.values) for boundary in parts.boundaries] == [1, 1]
    assert compare(model, parts, [(torch.randn(2, 5, 8),), (torch.randn(3, 5, 8),)]) == {}


@pytest.mark.parametrize("kind", ["parameter", "written buffer"])
def test_what_training_changes_is_not_public(kind: str) -> None:
    with pytest.raises(CutError, match="rates"):
        split(Rotary(kind), torch.randn(2, 5, 8), ("enter", "middle"))


def test_running_statistics_without_weights_are_not_public() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.middle, self.out = (nn.Linear(8, 8) for _ in range(3))
            self.norm = nn.BatchNorm1d(8, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.norm(self.middle(self.norm(self.enter(x)))))

    with pytest.raises(CutError, match=r"norm\..* is used by head and body"):
        split(Twice().train(), torch.randn(4, 8), ("norm#1", "norm"))


class Tied(nn.Module):
    """One weight at both ends; `how` says in which form the tail uses it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.enter, self.how = nn.Embedding(20, 8), how
        self.middle = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.out = nn.Linear(8, 20)
        self.out.weight = self.enter.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.enter(ids)
        if self.how == "twice":
            x = x + self.enter(ids.flip(1))
        x = self.middle(x)
        if self.how == "scaled":
            return nn.functional.linear(x, self.out.weight * 0.5, self.out.bias)
        if self.how == "twice":
            x = x + 0.01 * (x @ self.out.weight.mT @ self.out.weight)
        if self.how == "evaluation" and not self.training:
            return x @ self.enter.weight.mT
        return self.out(x)


@pytest.mark.parametrize("how", ["plain", "twice", "scaled", "evaluation", "frozen"])
def test_both_ends_share_one_parameter(how: str) -> None:
    model = Tied(how).train()
    if how == "frozen":
        model.enter.weight.requires_grad_(False)
    parts = split(model, torch.randint(20, (2, 6)), ("enter", "middle"))
    assert parts.tail is not None
    assert [name for name, _ in parts.head.named_parameters()] == ["enter.weight"]
    assert [name for name, _ in parts.tail.named_parameters()] == ["out.bias"]
    assert [value.name for value in parts.skips] == ["enter.weight"]
    assert set(parts.head.state_dict()) == {"enter.weight", "out.weight"}
    batches = [(torch.randint(20, (size, 6)),) for size in (2, 4, 3)]
    assert compare(model, parts, batches) == {}


def test_a_language_model_with_tied_ends() -> None:
    model = GPT(tied=True).train()
    parts = split(model, torch.randint(0, 20, (2, 12)), ("blocks.0", "norm"))
    assert compare(model, parts, [(torch.randint(0, 20, (2, 12)),) for _ in range(3)]) == {}


def test_weights_tied_within_the_body() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.first, self.second, self.out = (nn.Linear(8, 8) for _ in range(4))
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.second(torch.tanh(self.first(self.enter(x))))))

    model = Inside().train()
    parts = split(model, torch.randn(2, 8), ("enter", "second"))
    assert compare(model, parts, [(torch.randn(3, 8),) for _ in range(3)]) == {}
