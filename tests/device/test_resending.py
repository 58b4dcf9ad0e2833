"""An agent that dies in the middle of an upload: the next one sends only what the worker lacks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from broker.protocol.frames import Chunk, parse_frame
from broker.protocol.ranges import ByteRanges
from broker.transport.base import Delivery
from broker.transport.faults import FAULTLESS, Verdict
from broker.transport.in_process import MemoryBroker
from broker.transport.sender import WINDOW
from broker.transport.topology import device_of_key
from device_agent.agent import Agent
from spliteasy.job import Job, JobSpec
from spliteasy.observability.traces import Span, Tracer
from tests.device.lives import assert_same_bits, body_of, live, serving
from tests.simulation import toy
from tests.simulation.clock import run_virtually

SLOW = {"chunk_bytes": 1024, "max_uplink": 20_000.0}
STEP = 3
"""The step in whose upload the agent dies; the last checkpoint is of step 2."""


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 512), nn.ReLU(), nn.Dropout(0.3), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3)
    )


def example() -> tuple[Tensor, Tensor]:
    return torch.zeros(14, 6), torch.zeros(14, dtype=torch.int64)


@cache
def job() -> Job:
    """28 kB up in each FORWARD and each BACKWARD."""
    factory = {"factory": f"{__name__}:build", "example": f"{__name__}:example", "cuts": ("2", "4")}
    return Job.create(
        JobSpec.model_validate(
            {
                "name": "wide",
                "seed": 7,
                "batch_size": 14,
                "epochs": 4,
                "model": factory,
                "loss": {"name": "cross_entropy"},
                "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
                "durability": {"checkpoint_every": 1, "snapshot_every_steps": 3, "checkpoint_history": 2},
                "evaluation": {"every_epochs": 4},
            }
        )
    )


def count(frames: list[Chunk]) -> int:
    """How many frames the message has in all."""
    return -(-frames[0].total // frames[0].chunk_bytes)


@dataclass
class Watch:
    """Sees all frames of the device, by message in order of their first; tells when it is time to die."""

    die_in: int
    """The message of more than one frame, counted from 0, in the middle of which the agent dies."""
    messages: dict[str, list[Chunk]] = field(default_factory=dict)
    time_to_die: asyncio.Event = field(default_factory=asyncio.Event)

    def on_publish(self, principal: str, target: str, frame: bytes) -> Verdict:
        if device_of_key(target) is not None:
            chunk = parse_frame(frame)
            self.messages.setdefault(chunk.message_id, []).append(chunk)
            large = self.large()
            if len(large) == self.die_in + 1 and len(large[-1]) == count(large[-1]) // 2:
                self.time_to_die.set()
        return FAULTLESS

    def on_deliver(self, principal: str, queue: str, delivery: Delivery) -> Verdict:
        return FAULTLESS

    def large(self) -> list[list[Chunk]]:
        """The frames that were sent of each message that carries values of a step."""
        return [frames for frames in self.messages.values() if count(frames) > 20]


class _Unheard:
    """Traces are made, and go nowhere."""

    def record(self, span: Span, /) -> None:
        pass


@pytest.mark.parametrize("tracer", [None, _Unheard()], ids=["untraced", "traced"])
@pytest.mark.parametrize("kind", ["FORWARD", "BACKWARD"])
def test_only_what_the_worker_lacks_is_sent_again(kind: str, tracer: Tracer | None, tmp_path: Path) -> None:
    async def play() -> tuple[Agent, Watch, toy.State]:
        watch = Watch(die_in=2 * (STEP - 1) + (kind == "BACKWARD"))
        broker = MemoryBroker(policy=watch)
        async with serving(broker, job()) as store:
            await live(broker, job(), tmp_path, watch.time_to_die, tracer=tracer, **SLOW)
            agent = await live(broker, job(), tmp_path, asyncio.Event(), tracer=tracer, **SLOW)
            return agent, watch, await body_of(store, job())

    agent, watch, body = run_virtually(play())
    large = watch.large()
    cut, again = large[watch.die_in], large[watch.die_in + (1 if kind == "FORWARD" else 2)]
    assert not any(chunk.last for chunk in cut)
    assert any(chunk.last for chunk in again)
    sent_twice = {chunk.offset for chunk in cut} & {chunk.offset for chunk in again}
    assert 0 < len(sent_twice) <= WINDOW
    assert ByteRanges((chunk.offset, chunk.end) for chunk in (*cut, *again)).covers(0, cut[0].total)
    assert len(again) <= count(cut) // 2 + WINDOW

    assert_same_bits(agent, body, job())
