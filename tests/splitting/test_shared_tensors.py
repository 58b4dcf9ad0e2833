"""Tensors that more than one segment uses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spliteasy import split
from spliteasy.errors import CutError
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
            self.register_buffer("rates", rates, persistent=kind == "persistent buffer")
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
