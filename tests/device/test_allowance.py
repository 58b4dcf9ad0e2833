"""A link that is paid by the byte: no step begins beyond the day's allowance, and the bits are the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch

from broker.transport.in_process import MemoryBroker, MemoryTransport
from device_agent.agent import Agent, AgentResult
from device_agent.config import AgentConfig
from device_agent.observations import Observation, StateChanged
from device_agent.policy.data_budget import AHEAD, Allowance
from device_agent.policy.run_conditions import Gate
from device_agent.session.states import State
from spliteasy.runtime.torch_thread import TorchThread
from testing import serving
from tests.device.served import toy_job
from tests.drawn import SECRET
from tests.simulation import toy

MONDAY, TUESDAY = date(2026, 11, 23), date(2026, 11, 24)
LIMIT = 20_000
DAILY = 15_000
"""The job is 13 kB, a step 1.5 kB."""


class Written:
    """The writes of an allowance, and their number."""

    def __init__(self) -> None:
        self.raw: bytes | None = None
        self.times = 0

    def __call__(self, raw: bytes) -> None:
        self.raw, self.times = raw, self.times + 1


def test_bytes_count_by_day_and_are_written_down_before_they_are_used() -> None:
    written, day = Written(), [MONDAY]
    allowance = Allowance(LIMIT, save=written, today=lambda: day[0])
    for _ in range(199):
        allowance.count(100)
        after_a_crash = Allowance(LIMIT, saved=written.raw, today=lambda: day[0])
        assert allowance.used <= after_a_crash.used <= allowance.used + LIMIT // AHEAD
    assert written.times <= 199 * 100 / (LIMIT / AHEAD) + 1
    allowance.close()
    assert Allowance(LIMIT, saved=written.raw, today=lambda: MONDAY).used == 19_900
    day[0] = TUESDAY
    assert allowance.used == 0
    allowance.count(7)
    allowance.close()
    again = Allowance(LIMIT, saved=written.raw, today=lambda: day[0])
    assert again.used == 7
    day[0] = MONDAY  # the clock was wrong: the day is found again
    assert again.used == 19_900


def test_it_says_why_not() -> None:
    allowance = Allowance(LIMIT, today=lambda: MONDAY)
    assert allowance.why_not() is None
    allowance.count(1_000)
    allowance.between_steps(after_one=False)
    allowance.count(12_000)
    assert allowance.why_not() is None, "what a step takes is not known yet"
    allowance.between_steps(after_one=True)
    assert allowance.why_not() == (
        "13.0 kB of today's 20.0 kB (--metered) are used, and a step takes 12.0 kB; it goes on tomorrow, "
        "or started again with a larger --metered"
    )
    allowance.count(40_000)
    allowance.between_steps(after_one=True)
    assert "a step takes 40.0 kB, more than the 20.0 kB a day of --metered" in (allowance.why_not() or "")


def test_a_damaged_file_counts_as_none() -> None:
    assert Allowance(LIMIT, saved=b"{", today=lambda: MONDAY).used == 0


@dataclass
class Phone:
    """A device with so many bytes a day; `paused` is told when it pauses, with the agent."""

    broker: MemoryBroker
    state: Path
    metered: int
    day: date = MONDAY
    paused: Callable[[Phone], object] = lambda _: None
    told: list[str] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    agent: Agent | None = None

    async def train(self) -> AgentResult:
        compute = TorchThread()
        agent = self.agent = Agent(
            AgentConfig(
                job="toy",
                device="phone-1",
                data=toy.DATA,
                secret=SECRET,
                state=self.state,
                metered=self.metered,
            ),
            connect=self.connect,
            compute=compute,
            observe=self.observe,
            gate=Gate(self.always, every_s=0.0),
            today=lambda: self.day,
        )
        try:
            async with asyncio.timeout(60):
                return await agent.run(self.stop)
        finally:
            compute.close()

    async def connect(self) -> MemoryTransport:
        return self.broker.connect("phone-1")

    async def always(self) -> str | None:
        return None

    def observe(self, observation: Observation) -> None:
        if isinstance(observation, StateChanged):
            self.told.append(observation.text)
            if observation.text.startswith("paused:"):
                self.paused(self)

    @property
    def traffic(self) -> int:
        assert self.agent is not None
        return self.agent.link.bytes_up + self.agent.link.bytes_down


def assert_same_bits(agent: Agent | None) -> None:
    assert agent is not None
    assert agent.trainer is not None
    expected, found = toy.undisturbed("phone-1", toy.Variant())[0], agent.trainer.state()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


async def test_it_pauses_within_the_allowance_and_goes_on_the_next_day(tmp_path: Path) -> None:
    by_day: dict[date, int] = {}

    def sleep_over(phone: Phone) -> None:
        assert phone.agent is not None
        session = phone.agent.session
        assert session is not None
        assert session.state is State.PAUSED
        by_day[phone.day] = phone.traffic - sum(by_day.values())
        phone.day = date.fromordinal(phone.day.toordinal() + 1)

    broker = MemoryBroker()
    async with serving(toy_job(), broker=broker):
        phone = Phone(broker, tmp_path, DAILY, paused=sleep_over)
        assert (await phone.train()).done
    assert len(by_day) > 1
    assert all(0 < used <= DAILY for used in by_day.values()), by_day
    assert phone.told.count("going on") == len(by_day)
    assert_same_bits(phone.agent)


async def test_a_restart_counts_what_was_used_and_a_larger_allowance_goes_on(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with serving(toy_job(), broker=broker):
        first = Phone(broker, tmp_path, LIMIT, paused=lambda phone: phone.stop.set())
        result = await first.train()
        assert not result.done
        assert result.step > 0
        again = Phone(broker, tmp_path, LIMIT // 2, paused=lambda phone: phone.stop.set())
        assert not (await again.train()).done
        assert again.traffic == 0, "nothing is fetched or sent any more today"
        larger = Phone(broker, tmp_path, 10**9)
        assert (await larger.train()).done
    assert f"resumed after step {result.step}" in larger.told
    assert_same_bits(larger.agent)
