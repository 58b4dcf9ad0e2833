"""Worlds in which a share of a fleet's devices is killed in each round, from its first round to its last.

A device that was killed comes back when the round is over, or once it has lasted as long as a round may.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from device_agent.agent import Agent, AgentResult
from server_worker.rounds.turn import GRACE_S
from server_worker.rounds.waiting import MOST_WAIT_S
from spliteasy.fleet.record import RoundRecord
from tests.simulation import toy
from tests.simulation.world import LOSS_WINDOW_S, World

LOOK_S = 0.1
"""Seconds between looks at the newest record."""


@dataclass(kw_only=True)
class ChurningWorld(World):
    """A world whose devices are killed by `share` in each round, drawn by the seed."""

    share: float
    _doomed: dict[str, asyncio.Event] = field(default_factory=dict)
    """Set while a device is to be killed, or away."""
    _free: dict[str, asyncio.Event] = field(default_factory=dict)
    """Set while it is not."""

    async def _play(self, folder: object) -> None:
        self._doomed = {device: asyncio.Event() for device in self.devices}
        self._free = {device: asyncio.Event() for device in self.devices}
        self._release()
        churn = asyncio.create_task(self._churn())
        try:
            await super()._play(folder)  # type: ignore[arg-type]
        finally:
            churn.cancel()
            await asyncio.gather(churn, return_exceptions=True)

    async def _churn(self) -> None:
        """Kill some devices in each round, at any moment of it."""
        seen, loop = -1, asyncio.get_running_loop()
        deadline_s = toy.job(self.variant).spec.fleet.deadline_s
        kills: list[asyncio.Task[None]] = []
        while True:
            await asyncio.sleep(LOOK_S)
            line = await self._store.fleets.newest_round(self.fleet_name)
            newest = None if line is None else RoundRecord.from_json(line)
            if newest is None or newest.opened == seen:
                continue
            seen = newest.opened
            for kill in kills:
                kill.cancel()
            self._release()
            chosen = self._rng.sample(self.devices, max(1, round(self.share * len(self.devices))))
            kills = [
                loop.create_task(self._kill(device, self._rng.uniform(0.0, deadline_s / 2), deadline_s))
                for device in chosen
            ]

    async def _kill(self, device: str, after_s: float, away_s: float) -> None:
        await asyncio.sleep(after_s)
        self._faults.note("device killed in its round", device)
        self._free[device].clear()
        self._doomed[device].set()
        await asyncio.sleep(away_s)
        self._release(device)

    def _release(self, *devices: str) -> None:
        """Let these devices come back, or all."""
        for device in devices or self.devices:
            self._doomed[device].clear()
            self._free[device].set()

    async def _live(self, agent: asyncio.Task[AgentResult], device: str) -> None:
        doomed = asyncio.create_task(self._doomed[device].wait())
        await asyncio.wait({agent, doomed}, return_when=asyncio.FIRST_COMPLETED)
        doomed.cancel()

    async def _may_start(self, device: str) -> None:
        await self._free[device].wait()

    async def _judge_rounds(self, ended: Mapping[str, Agent]) -> Sequence[RoundRecord]:
        records = await super()._judge_rounds(ended)
        self.violations += overdue(records, toy.job(self.variant).spec.fleet.deadline_s)
        return records


def overdue(records: Sequence[RoundRecord], deadline_s: float) -> list[str]:
    """Return the rounds that lasted longer than their deadline, the grace after it, and one more poll."""
    most_s = deadline_s + min(GRACE_S, deadline_s / 4) + LOSS_WINDOW_S + min(MOST_WAIT_S, deadline_s / 10)
    return [
        f"round {record.number} lasted {record.closed_at - before.closed_at:.1f} s of {most_s:.1f}"
        for before, record in pairwise(records)
        if before.cohort and record.closed_at - before.closed_at > most_s
    ]
