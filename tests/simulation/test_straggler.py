"""A device that is ten times slower than a round's deadline allows costs a round its deadline only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest

from device_agent.agent import Agent
from server_worker.rounds.turn import GRACE_S
from spliteasy.fleet.record import RoundRecord
from spliteasy.runtime.torch_thread import Compute
from tests.simulation import toy
from tests.simulation.clock import run_virtually
from tests.simulation.faults import CALM
from tests.simulation.quick import SHARDS, quick
from tests.simulation.world import MemoryTransport, World

T = TypeVar("T")
SLOW = "phone-3"
SLOW_S = 4.0
"""Each computation of the slow device takes so long; a step has five, and a round three steps."""

HALF = (("aggregate", "plain"), ("quorum", 0.5), ("devices_per_round", 3))
FLEETS = {
    "rounds": toy.Variant(epochs=6, fleet=(*toy.ROUNDS, *HALF)),
    "windows": toy.Variant(epochs=4, fleet=(("mode", "shared"), *toy.ROUNDS[1:], *HALF)),
}


class SlowCompute:
    """The torch thread of a slow device."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    async def __call__(self, run: Callable[[], T]) -> T:
        await asyncio.sleep(SLOW_S)
        return await self._compute(run)


class SlowWorld(World):
    """A world in which one device is slow; it keeps the records."""

    records: tuple[RoundRecord, ...] = ()

    def _agent(
        self, device: str, state: Path, *, takeover: bool, restart: bool
    ) -> tuple[Agent, list[MemoryTransport]]:
        agent, transports = super()._agent(device, state, takeover=takeover, restart=restart)
        if device == SLOW:
            agent._compute = SlowCompute(agent._compute)
        return agent, transports

    async def _operator(self) -> None:
        """Nobody pauses a session here."""

    async def _judge_rounds(self, ended: Mapping[str, Agent]) -> None:
        await super()._judge_rounds(ended)
        lines = await self._store.fleets.rounds(f"toy@{toy.job(self.variant).digest}")
        self.records = tuple(RoundRecord.from_json(line) for line in lines)


@pytest.mark.parametrize("variant", FLEETS.values(), ids=FLEETS)
def test_a_straggler_costs_a_round_its_deadline_only(variant: toy.Variant) -> None:
    world = SlowWorld(seed=1, variant=variant, devices=toy.FLEET, rates=CALM, shards=SHARDS)
    with quick():
        outcome = run_virtually(world.run())
    assert outcome.violations == []
    deadline_s = toy.job(variant).spec.fleet.deadline_s
    others = set(toy.FLEET) - {SLOW}
    waited = [
        after.closed_at - before.closed_at
        for before, after in pairwise(world.records)
        if others & set(before.cohort)
    ]
    late = [
        after
        for before, after in pairwise(world.records)
        if SLOW in before.cohort and SLOW not in after.participants and others & set(after.participants)
    ]
    assert late, "the others have gone on without the slow device"
    grace_s, asks_s = min(GRACE_S, deadline_s / 4), deadline_s / 10
    assert max(waited) <= deadline_s + grace_s + asks_s
