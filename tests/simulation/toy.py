"""The smallest training that can go wrong in every way: batch norm, dropout, momentum, a short batch."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from broker import messages as m
from device_agent.data import Batches, EvaluationBatches, load_dataset
from device_agent.trainer import DeviceTrainer
from server_worker.memory import SessionMemory
from spliteasy.digest import digest_of
from spliteasy.job import Job, JobSpec

SAMPLES, BATCH, EPOCHS = 14, 4, 3
DATA = "tests.simulation.toy:device_data"


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 5),
        nn.Dropout(0.3),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def example() -> tuple[Tensor, Tensor]:
    return torch.zeros(BATCH, 6), torch.zeros(BATCH, dtype=torch.int64)


def device_data(device: str) -> tuple[Dataset[tuple[Tensor, ...]], Dataset[tuple[Tensor, ...]]]:
    generator = torch.Generator().manual_seed(int(device.rpartition("-")[2]))
    inputs = torch.randn(SAMPLES, 6, generator=generator)
    targets = torch.randint(0, 3, (SAMPLES,), generator=generator)
    return TensorDataset(inputs, targets), TensorDataset(inputs[:5], targets[:5])


@cache
def job(*, single: bool = False) -> Job:
    """The toy job, U-shaped or single split."""
    spec = JobSpec.model_validate(
        {
            "name": "toy",
            "seed": 7,
            "batch_size": BATCH,
            "epochs": EPOCHS,
            "share_labels": single,
            "model": {
                "factory": "tests.simulation.toy:build",
                "example": "tests.simulation.toy:example",
                "cuts": ("2",) if single else ("2", "5"),
            },
            "loss": {"name": "cross_entropy"},
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
            "durability": {"checkpoint_every": 2, "snapshot_every_steps": 3, "checkpoint_history": 2},
            "evaluation": {"every_epochs": 2},
        }
    )
    return Job.create(spec)


State = dict[str, Tensor]


@cache
def undisturbed(device: str, *, single: bool = False) -> tuple[State, State, dict[int, str]]:
    """The device's state and the body's after the last step, and each GRADIENT's digest, without a wire."""
    toy = job(single=single)
    data = load_dataset(DATA, device, toy.signature)
    assert data.test is not None
    batches = Batches(data.train, toy.spec, toy.signature, device=device)
    tests = EvaluationBatches(data.test, toy.spec, toy.signature, device=device)
    trainer = DeviceTrainer.create(toy, batches, tests, device=device)
    body = SessionMemory(toy, f"toy.{device}")
    attempt = m.AttemptRef(number=1, nonce="0" * 16)
    digests = {}
    for step in range(1, batches.total_steps + 1):
        values, samples, targets = trainer.run_head(step)
        common = {"session": f"toy.{device}", "attempt": attempt, "step": step}
        forward = m.Forward(**common, values=values, samples=samples, targets=targets, oldest_checkpoint=0)
        body.forward(forward)
        if single:
            result = body.backward_from_loss()
        else:
            gradients = trainer.run_tail(body.outputs)
            result = body.backward(m.Backward(**common, forward=forward.request, values=gradients))
        digests[step] = digest_of(result.gradients)
        trainer.apply(result.gradients, result.loss)
    return trainer.state(), body.snapshot(), digests
