"""A loss with parameters of its own: they live in the tail, and are trained there as plain PyTorch would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spliteasy.errors import JobError
from spliteasy.job import Job, parse_job
from spliteasy.job.source import build_model, users_loss
from spliteasy.privacy.ends import draw
from spliteasy.runtime.randomness import Key
from spliteasy.training.reference import PlainTraining
from spliteasy.training.segment_trainer import STEP_KEY, SegmentTrainer, backward_from, detached, tensors_of
from tests.job.test_spec import small

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests.job.test_own_loss"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.kind, self.size = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.middle(self.stem(x))
        return self.kind(x), self.size(x)


class Named(Net):
    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.Module()
        self.loss.log_vars = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kind, size = super().forward(x)
        return kind + self.loss.log_vars[0], size


class Returns(Net):
    def __init__(self) -> None:
        super().__init__()
        self.log_vars = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Any:
        return (*super().forward(x), self.log_vars)


class Weighed(nn.Module):
    """Two tasks weighed by what is learnt about each, and classes with centres that are drawn at random."""

    def __init__(self) -> None:
        super().__init__()
        self.log_vars, self.centres = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.randn(3, 3))
        self.register_buffer("classes", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, outputs: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
        kind = F.cross_entropy(outputs[0], targets[0], weight=self.classes)
        kind = kind + 0.1 * (outputs[0] - self.centres[targets[0]]).pow(2).mean()
        size = F.mse_loss(outputs[1][:, 0], targets[1])
        return (-self.log_vars[0]).exp() * kind + (-self.log_vars[1]).exp() * size + self.log_vars.sum()


weighed = Weighed()


def example() -> Any:
    return torch.randn(4, 6), (torch.zeros(4, dtype=torch.int64), torch.zeros(4))


def spec_of(loss: str = "weighed", model: str = "Net", **changes: Any) -> Any:
    data = {**small(), "seed": 3, "loss": {"function": f"{HERE}:{loss}"}}
    data["model"] = {
        "factory": f"{HERE}:{model}",
        "example": f"{HERE}:example",
        "cuts": ["stem", "middle"],
        "targets": ["kind", "size"],
    }
    data["model"] |= changes.pop("model_changes", {})
    return parse_job(data | changes)


def batch(size: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    x = torch.randn(size, 6, generator=torch.Generator().manual_seed(size))
    return (x,), (x[:, :3].argmax(1), x.sum(1))


def step(job: Job, trainers: list[SegmentTrainer], inputs: Any, targets: Any) -> float:
    """A step through the segments, as device and worker take it; returns the loss."""
    opened = []
    for trainer in trainers:
        opened.append(trainer.forward(inputs))
        inputs = detached(opened[-1].outputs)
    loss = job.loss(tensors_of(opened[-1].outputs), targets)
    backward_from(loss)
    gradients = [value.grad for value in tensors_of(opened[-1].inputs)]
    for trainer, forward in reversed(list(zip(trainers[:-1], opened[:-1], strict=True))):
        gradients = list(trainer.backward(forward, gradients))
    for trainer in trainers:
        trainer.apply()
    return float(loss.detach())


@pytest.mark.parametrize("loss", ["weighed", "Weighed"])
@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        {"name": "adamw", "lr": 0.01, "groups": [{"pattern": "loss.*", "lr": 0.1, "weight_decay": 0.0}]},
        {"name": "sgd", "lr": 0.1, "groups": [{"pattern": "loss.centres", "frozen": True}]},
    ],
    ids=["sgd", "group", "frozen"],
)
def test_it_is_trained_as_plain_pytorch_trains_it(loss: str, optimizer: dict[str, Any]) -> None:
    spec = spec_of(loss, optimizer=optimizer, clip={"max_norm": 5.0})
    job = Job.create(spec, ROOT)
    assert job.tail is not None
    assert {"loss.log_vars", "loss.centres"} <= set(job.tail.state_dict())
    assert len(job.signature.outputs) == 2
    key = Key(bytes(32))
    ends = draw(job.ends, key)
    trainers = [
        SegmentTrainer(
            segment.spawn(ends.get(role)),
            spec,
            device="phone-1",
            role=role,
            key=key if role != "body" else None,
        )
        for role, segment, own in (("head", job.head, key), ("body", job.body, None), ("tail", job.tail, key))
    ]
    plain = PlainTraining(
        job, build_model(spec, ROOT)[0], users_loss(spec, ROOT), device="phone-1", key=key, ends=ends
    )
    for size in (4, 5, 3):
        assert step(job, trainers, *batch(size)) == plain.step(*batch(size))
    ours = {name: tensor for trainer in trainers for name, tensor in trainer.state().items()}
    theirs = plain.state()
    del ours[STEP_KEY]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    frozen = optimizer.get("groups", [{}])[0].get("frozen", False)
    first = {**job.tail.tensors(), **ends["tail"]}["loss.centres"]
    assert torch.equal(ours["model/loss.centres"], first) == frozen
    assert ("loss.centres" in ends["tail"]) == (loss == "Weighed")  # drawn by the device, as weights are


def test_the_same_job_is_made_each_time() -> None:
    assert Job.create(spec_of("Weighed"), ROOT).digest == Job.create(spec_of("Weighed"), ROOT).digest


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (spec_of(model="Named"), "the model and the loss both have a parameter loss.log_vars"),
        (
            spec_of(model_changes={"cuts": ["stem"]}, share_labels=True),
            "a loss with parameters of its own needs a tail to live in",
        ),
        (spec_of(model="Returns"), "output 2 of the model, log_vars, has no batch as its first dimension"),
    ],
    ids=["name taken", "one cut", "returned by the model"],
)
def test_what_cannot_be_trained_is_said(spec: Any, told: str) -> None:
    with pytest.raises(JobError, match=told):
        Job.create(spec, ROOT)
