"""A device that may not go on for now: it pauses between steps and loses nothing; the bits are the same."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from broker.transport.in_process import MemoryBroker, MemoryTransport
from device_agent.agent import Agent, AgentResult
from device_agent.config import AgentConfig
from device_agent.observations import Observation, StateChanged, StepTaken
from device_agent.policy.run_conditions import Gate
from device_agent.session.states import State
from spliteasy.runtime.torch_thread import TorchThread
from testing import serving
from tests.device.served import toy_job
from tests.drawn import SECRET
from tests.simulation import toy

NIGHT_AFTER = 3


@dataclass
class Phone:
    """A device that may not train from step 3 on, until `may_go_on` after it paused."""

    broker: MemoryBroker
    state: Path
    night: bool = False
    may_go_on: bool = True
    gated: bool = True
    connections: int = 0
    told: list[str] = field(default_factory=list)
    paused_at: list[tuple[State, int, bool]] = field(default_factory=list)
    """State of the session, its step, and whether a checkpoint of it was on disk."""
    stop_at: tuple[str, ...] = ()
    """The words after which the user stops it."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    agent: Agent | None = None

    async def train(self) -> AgentResult:
        compute = TorchThread()
        agent = self.agent = Agent(
            AgentConfig(job="toy", device="phone-1", data=toy.DATA, secret=SECRET, state=self.state),
            connect=self.connect,
            compute=compute,
            observe=self.observe,
            gate=Gate(self.condition, every_s=0.0) if self.gated else None,
        )
        try:
            async with asyncio.timeout(60):
                return await agent.run(self.stop)
        finally:
            compute.close()

    async def connect(self) -> MemoryTransport:
        self.connections += 1
        return self.broker.connect("phone-1")

    async def condition(self) -> str | None:
        return "night" if self.night else None

    def observe(self, observation: Observation) -> None:
        assert self.agent is not None
        session = self.agent.session
        match observation:
            case StepTaken(step=step):
                self.night = self.night or (step == NIGHT_AFTER)
            case StateChanged(text=text):
                self.told.append(text)
                if text in self.stop_at:
                    self.stop.set()
                if text == "paused: night":
                    if session is not None:
                        self.paused_at.append((session.state, session.step, session.step in session.held))
                    if self.may_go_on:
                        self.night = False
                    else:
                        self.stop.set()

    def assert_same_bits(self) -> None:
        assert self.agent is not None
        assert self.agent.trainer is not None
        expected, found = toy.undisturbed("phone-1", toy.Variant())[0], self.agent.trainer.state()
        assert expected.keys() == found.keys()
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


async def test_it_pauses_between_steps_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with serving(toy_job(), broker=broker):
        phone = Phone(broker, tmp_path)
        assert (await phone.train()).done
    [(state, step, on_disk)] = phone.paused_at
    assert (state, on_disk) == (State.PAUSED, True)
    assert NIGHT_AFTER <= step < 100
    assert phone.told[phone.told.index("paused: night") + 1] == "going on"
    phone.assert_same_bits()


async def test_stopped_while_it_pauses_it_goes_on_from_there(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with serving(toy_job(), broker=broker):
        phone = Phone(broker, tmp_path, may_go_on=False)
        result = await phone.train()
        [(_, step, _)] = phone.paused_at
        assert (result.done, result.step) == (False, step)
        again = Phone(broker, tmp_path)
        again.night = False
        assert (await again.train()).done
    assert f"resumed after step {step}" in again.told
    again.assert_same_bits()


@pytest.mark.parametrize("may_go_on", [True, False])
async def test_at_night_nothing_is_sent_or_fetched(may_go_on: bool, tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with serving(toy_job(), broker=broker):
        phone = Phone(broker, tmp_path, night=True, may_go_on=may_go_on)
        result = await phone.train()
    assert phone.told[0] == "paused: night"
    assert result.done is may_go_on
    assert phone.connections == int(may_go_on)


async def test_stopped_before_its_job_came_it_ends_well(tmp_path: Path) -> None:
    phone = Phone(
        MemoryBroker(), tmp_path, gated=False, stop_at=("waiting for a worker to serve this broker",)
    )
    result = await phone.train()
    assert (result.done, result.step, result.total_steps) == (False, 0, 0)
    broker = MemoryBroker()
    async with serving(toy_job(), broker=broker):
        again = Phone(broker, tmp_path)
        assert (await again.train()).done
    again.assert_same_bits()
