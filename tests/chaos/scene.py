"""The scene that faults act on, and the parts that they share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.chaos.device import Device
from tests.chaos.stack import Stack, WorkerSlot

GIVEN_UP_S = 30.0
"""Longer than the broker takes to give up a client that says nothing (heartbeats of 2 s and 5 s)."""

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Scene:
    """The parts that faults act on."""

    stack: Stack
    devices: Sequence[Device]

    def active(self) -> list[int]:
        """Slots of the devices that are stepping now."""
        return self.stack.record.active(range(len(self.devices)))

    def active_on(self, worker: WorkerSlot) -> list[int]:
        """Those of them whose session that worker has."""
        owners = self.stack.record.owners
        return [n for n in self.active() if owners.get(self.devices[n].session) == worker.number]


Strike = Callable[[Scene, random.Random, str], Awaitable[None]]
"""A fault: does its harm, heals it, and says from when training could go on. The text is its kind."""


async def moved_on(scene: Scene, slots: Sequence[int]) -> None:
    """Wait until the devices have taken a step, or the broker must have given up who holds them."""
    if not await until(lambda: not scene.stack.record.waiting(slots), GIVEN_UP_S):
        scene.stack.record.note("nobody took over yet")


async def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for it; whether it came true in time. What it looks at changes in too many places to be told."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True
