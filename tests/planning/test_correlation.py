"""Distance correlation: what is known of it in theory, and through a model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spliteasy.planning.correlation import InputCorrelation, distance_correlation
from spliteasy.planning.flow import Flow
from spliteasy.splitting.export import trace_model

SAMPLES = 60


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_one_for_a_rotation() -> None:
    x = torch.randn(SAMPLES, 30)
    turned, _ = torch.linalg.qr(torch.randn(30, 30))
    assert distance_correlation(x, 3 * x @ turned + 2) == pytest.approx(1, abs=1e-3)


def test_about_zero_for_independent_samples_of_many_dimensions() -> None:
    """The estimate without bias correction gives more than 0.9 here."""
    assert distance_correlation(torch.randn(SAMPLES, 3000), torch.randn(SAMPLES, 3000)) < 0.2


def test_finds_what_plain_correlation_misses() -> None:
    x = torch.linspace(-1, 1, SAMPLES).reshape(-1, 1)
    assert abs(float(torch.corrcoef(torch.cat((x, x * x), 1).T)[0, 1])) < 1e-5
    assert distance_correlation(x, x * x) > 0.4


def test_tokens_differ_by_places() -> None:
    ids = torch.randint(0, 50, (SAMPLES, 12))
    table = torch.randn(50, 40)
    assert distance_correlation(ids, table[ids].reshape(SAMPLES, -1)) > 0.7
    assert distance_correlation(ids, table[torch.randint(0, 50, (SAMPLES, 12))].reshape(SAMPLES, -1)) < 0.3


def test_nothing_varies() -> None:
    assert distance_correlation(torch.randn(SAMPLES, 3), torch.ones(SAMPLES, 3)) == 0


class Forgetting(nn.Module):
    """Keeps everything, then a little, and sends both at one place."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(20, 20, bias=False)
        self.little = nn.Linear(20, 1)
        self.out = nn.Linear(21, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.all(x)
        return self.out(torch.cat((x, self.little(x)), 1))


def test_through_a_model() -> None:
    model = Forgetting()
    nn.init.orthogonal_(model.all.weight)
    x = torch.randn(SAMPLES, 20)
    traced = trace_model(model, x)
    flow = Flow(traced)
    seen = InputCorrelation(traced, flow, (x,))
    numbers = {value.op.name: v for v, value in enumerate(flow.values)}
    everything, little = numbers["linear"], numbers["linear_1"]
    assert seen.of([everything]) == pytest.approx(1, abs=1e-3)
    assert seen.of([little]) == pytest.approx(distance_correlation(x, model.little(model.all(x))), abs=1e-3)
    assert seen.of([little]) < 0.6
    together = torch.cat((model.all(x), model.little(model.all(x))), 1)
    assert seen.of([everything, little]) == pytest.approx(distance_correlation(x, together), abs=1e-3)
    assert seen.of([]) == 0
