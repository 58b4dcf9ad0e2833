"""The models of `benchmarks.plan`. Job files name them `benchmarks.harness.plan_models:MODELS.resnet50`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks.harness.workloads import Cifar18
from examples.digits.model import DigitNet
from tests.splitting.networks import LARGE

EPOCHS = 10_000
SEED = 7

PREDICTED = {"digits": (("stem", "pool"), 30), "resnet18": (("blocks.1", "pool"), 8)}
"""Two models for three links, each with cuts of its own and a batch size."""

_INIT, _FEATURES = "features.init_block", "features"
PAPER = {
    "resnet50": ((_INIT, _FEATURES), 4),
    "vgg19": (("features.stage1.unit1", "output.fc2"), 2),
    "inceptionv3": ((_INIT, _FEATURES), 4),
    "inceptionresnetv2": ((_INIT, _FEATURES), 2),
    "densenet121": ((_INIT, _FEATURES), 4),
    "densenet201": ((_INIT, _FEATURES), 4),
}
"""The paper's own cuts: the first right after the stem, the second right before the classifier."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """A model's inputs and targets."""

    inputs: tuple[int, ...]
    classes: int

    def example(self, count: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(SEED)
        return (
            torch.randn(count, *self.inputs, generator=generator),
            torch.randint(self.classes, (count,), generator=generator),
        )


def _shown(name: str) -> _Shown:
    if name in LARGE:
        (inputs,) = LARGE[name].batch(1)
        return _Shown(tuple(inputs.shape[1:]), 10)
    return {"digits": _Shown((1, 8, 8), 10), "resnet18": _Shown((3, 32, 32), 100)}[name]


_BATCHES = {name: batch for name, (_, batch) in (PREDICTED | PAPER).items()}

MODELS = SimpleNamespace(
    digits=DigitNet, resnet18=Cifar18, **{name: network.make for name, network in LARGE.items()}
)
EXAMPLES = SimpleNamespace(
    **{name: partial(_shown(name).example, max(4, batch)) for name, batch in _BATCHES.items()}
)


def data_set(name: str) -> TensorDataset:
    """Two batches."""
    return TensorDataset(*_shown(name).example(2 * _BATCHES[name]))


DATA = SimpleNamespace(**{name: partial(data_set, name) for name in _BATCHES})


def job(name: str, cuts: tuple[str, ...] | None, batch: int, label: str, **plan: Any) -> dict[str, Any]:
    """Return the job as a job file would have it. `cuts` None: "auto"."""
    return {
        "name": f"{name}-{label}",
        "batch_size": batch,
        "epochs": EPOCHS,
        "model": {
            "factory": f"{__name__}:MODELS.{name}",
            "example": f"{__name__}:EXAMPLES.{name}",
            "cuts": "auto" if cuts is None else cuts,
        },
        "loss": {"name": "cross_entropy"},
        "optimizer": {"name": "sgd", "lr": 1e-5, "momentum": 0.9},
        "evaluation": {"every_epochs": EPOCHS},
        "plan": plan,
    }
