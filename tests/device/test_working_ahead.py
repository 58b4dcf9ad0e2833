"""While it waits, a device loads the next batch, and runs a head that training does not change on it."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from broker.transport.in_process import MemoryBroker
from device_agent.agent import Agent
from device_agent.observations import Observation, StepTaken
from spliteasy.job import Job, JobSpec
from tests.device.lives import assert_same_bits, body_of, live, serving
from tests.simulation.clock import run_virtually

FROZEN = [{"pattern": "0.*", "frozen": True}, {"pattern": "1.*", "frozen": True}]


def with_dropout() -> nn.Module:
    """The batch norm is frozen too, as a user does it: left in evaluation mode."""
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8).eval(),
        nn.Dropout(0.3),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def with_statistics() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def example() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64)


@cache
def job(build: str, frozen: bool, codec: str = "fp32", micro_batches: int = 1) -> Job:
    return Job.create(
        JobSpec.model_validate(
            {
                "name": "ahead",
                "seed": 7,
                "batch_size": 4,
                "micro_batches": micro_batches,
                "epochs": 3,
                "model": {
                    "factory": f"{__name__}:{build}",
                    "example": f"{__name__}:example",
                    "cuts": ("2", "4"),
                },
                "loss": {"name": "cross_entropy"},
                "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "groups": FROZEN if frozen else []},
                "link": {"activations": codec},
                "durability": {"checkpoint_every": 2, "snapshot_every_steps": 3},
                "evaluation": {"every_epochs": 2},
            }
        )
    )


@pytest.mark.parametrize(
    ("which", "ahead"),
    [
        (("with_dropout", True, "int8", 2), True),
        (("with_dropout", True, "topk:0.5"), True),
        (("with_statistics", True), False),
        (("with_dropout", False), False),
    ],
)
def test_ahead_where_nothing_changes_and_the_bits_are_the_same(
    which: tuple[str, bool], ahead: bool, tmp_path: Path
) -> None:
    """It dies after a step whose checkpoint is not written: that step is taken again after the restart."""
    seen: set[int | None] = set()

    async def play() -> None:
        killed, broker = asyncio.Event(), MemoryBroker()

        def observe(agent: Agent, observation: Observation) -> None:
            if isinstance(observation, StepTaken):
                assert agent.trainer is not None
                seen.add(agent.trainer.ahead)
                if observation.step == 5:
                    killed.set()

        async with serving(broker, job(*which)) as store:
            await live(broker, job(*which), tmp_path, killed, observe)
            agent = await live(broker, job(*which), tmp_path, asyncio.Event(), observe)
            assert_same_bits(agent, await body_of(store, job(*which)), job(*which))

    run_virtually(play())
    assert seen == (set(range(2, 13)) | {None} if ahead else {None})
