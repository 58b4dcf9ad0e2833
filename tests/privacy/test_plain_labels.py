"""Tails whose gradients are the labels under another name, told before anything is trained."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from spliteasy.job import Job, load_job_file, parse_job
from spliteasy.privacy.plain_labels import plain_labels
from tests.privacy.conftest import DIGITS, ROOT

CLASSES = 5


class Scale(nn.Module):
    """A secret factor for each of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.rand(CLASSES) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


class Ends(nn.Module):
    """A head, a body, and a tail to be tried."""

    def __init__(self, tail: nn.Module, width: int = CLASSES) -> None:
        super().__init__()
        self.head, self.body, self.tail = nn.Linear(6, 16), nn.Linear(16, width), tail

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.tail(self.body(self.head(x).tanh()))
        return found


TAILS: dict[str, Callable[[], Ends]] = {
    "nothing": lambda: Ends(nn.Flatten()),
    "softplus": lambda: Ends(nn.Softplus()),
    "dropout": lambda: Ends(nn.Dropout(0.3)),
    "means": lambda: Ends(nn.Sequential(nn.Unflatten(1, (CLASSES, 4)), nn.AvgPool1d(4), nn.Flatten()), 20),
    "scales": lambda: Ends(Scale()),
    "norm": lambda: Ends(nn.BatchNorm1d(CLASSES)),
    "linear": lambda: Ends(nn.Linear(32, CLASSES), 32),
    "two layers": lambda: Ends(nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, CLASSES)), 32),
    "norm and linear": lambda: Ends(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, CLASSES)), 32),
}
TELLING = {"nothing", "softplus", "dropout", "means", "scales", "norm"}


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 6), torch.zeros(4, dtype=torch.int64)


def numbers() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 6), torch.zeros(4, CLASSES)


Make = Callable[..., Job]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """A job with that tail, as submit makes it."""

    def made(tail: str, loss: str = "cross_entropy", **privacy: object) -> Job:
        monkeypatch.setattr(sys.modules[__name__], "chosen", TAILS[tail], raising=False)
        spec = {
            "name": "labels",
            "batch_size": 4,
            "epochs": 1,
            "model": {
                "factory": f"{__name__}:chosen",
                "example": f"{__name__}:{'example' if loss == 'cross_entropy' else 'numbers'}",
                "cuts": ["head", "body"],
            },
            "loss": {"name": loss},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "privacy": privacy,
        }
        return Job.create(parse_job(spec), ROOT)

    return made


@pytest.mark.parametrize("tail", TAILS)
def test_what_tells_the_labels_is_told(make: Make, tail: str) -> None:
    why = plain_labels(make(tail))
    if tail in TELLING:
        assert why is not None
        assert "labels cross the second cut in disguise" in why
    else:
        assert why is None


@pytest.mark.parametrize("tail", ["nothing", "two layers"])
@pytest.mark.parametrize("loss", ["mse", "bce_with_logits"])
def test_targets_of_other_kinds_are_tried_too(make: Make, tail: str, loss: str) -> None:
    why = plain_labels(make(tail, loss))
    assert (why is not None and "whatever the tail's weights are" in why) == (tail in TELLING)


def test_nothing_is_said_where_labels_or_gradients_are_changed(make: Make) -> None:
    assert plain_labels(make("nothing", label_dp=2.0)) is None
    assert plain_labels(make("nothing", gradient_noise=3.0)) is None


def test_the_digits_are_not_called_plain_and_the_measure_leaves_generators_alone() -> None:
    job = Job.create(load_job_file(DIGITS), ROOT)
    state = torch.get_rng_state()
    assert plain_labels(job) is None
    assert torch.equal(torch.get_rng_state(), state)
