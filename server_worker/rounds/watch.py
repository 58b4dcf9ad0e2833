"""A worker tells the devices that wait with it when they can go on, so that none of them asks in vain.

Nothing depends on it: a device that was not told asks again by itself (`waiting.py`), and a session
that is woken goes by what the store has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import structlog

from server_worker.rounds.waiting import MOST_IDLE_S, WaitingDevice
from server_worker.store import Store
from spliteasy.errors import StoreError
from spliteasy.fleet.record import RoundRecord

log = structlog.get_logger(__name__)

LEAST_LOOK_S, MOST_LOOK_S = 0.02, 1.0
"""A round that another worker has closed is seen after a tenth of the time that it lasted, within these."""
FORGOTTEN_S = 3 * MOST_IDLE_S
"""A device that has not asked for so long is not told any more: by then it would have asked again."""

Wake = Callable[[str], Awaitable[None] | None]
"""Lets the device of a session go on; the awaitable is done then. None where the session is not here."""


@dataclass(slots=True)
class _Fleet:
    """The devices of one fleet that wait, those first that have asked longest ago."""

    since_s: float
    """Since when the newest record is known, or it is looked for."""
    waiting: dict[str, tuple[WaitingDevice, float]] = field(default_factory=dict)
    """The devices, and when each asked last."""
    newest: RoundRecord | None = None
    line: bytes | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """This worker has closed a round."""


class RoundWatch:
    """Looks at the newest record of each fleet that devices wait for."""

    def __init__(self, store: Store, wake: Wake, clock: Callable[[], float]) -> None:
        self._store = store
        self._wake = wake
        self._clock = clock
        self._fleets: dict[str, _Fleet] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, fleet: str) -> asyncio.Lock:
        """Return the lock of those who close a round of the fleet, or take its mean."""
        return self._locks.setdefault(fleet, asyncio.Lock())

    def wait(self, device: WaitingDevice, known: int) -> None:
        """Wake the device's session once there is a record after number `known` that lets it go on."""
        fleet = self._fleets.setdefault(device.fleet, _Fleet(since_s=self._clock()))
        fleet.waiting.pop(device.session, None)
        fleet.waiting[device.session] = device, self._clock()
        newest = fleet.newest
        if newest is not None and newest.number > known and device.why(newest) is None:
            fleet.ended.set()  # it was decided since the session looked
            fleet.line = None
        if device.fleet not in self._tasks:
            self._tasks[device.fleet] = asyncio.create_task(self._watch(device.fleet, fleet))

    def ended(self, fleet: str) -> None:
        """Look at once: this worker has closed a round of the fleet, and taken its mean if it could."""
        if (known := self._fleets.get(fleet)) is not None:
            known.ended.set()

    async def close(self) -> None:
        """Tell nobody any more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, name: str, fleet: _Fleet) -> None:
        """Look until nobody waits."""
        try:
            while fleet.waiting:
                own = await self._pause(fleet)
                try:
                    line = await self._store.fleets.newest_round(name)
                    if line is not None and line != fleet.line:
                        fleet.newest, fleet.line = RoundRecord.from_json(line), line
                        fleet.since_s = self._clock()
                        await self._tell(fleet, fleet.newest, at_once=own)
                except StoreError as error:
                    log.info("the end of a round was not looked for", fleet=name, error=error.message)
                    await asyncio.sleep(MOST_LOOK_S)
                self._forget(fleet)
        finally:
            del self._tasks[name], self._fleets[name]

    async def _pause(self, fleet: _Fleet) -> bool:
        """Wait until it is time to look again; whether this worker itself has closed a round meanwhile."""
        known_s = self._clock() - fleet.since_s
        with suppress(TimeoutError):
            async with asyncio.timeout(min(MOST_LOOK_S, max(LEAST_LOOK_S, known_s / 10))):
                await fleet.ended.wait()
        own = fleet.ended.is_set()
        fleet.ended.clear()
        return own

    async def _tell(self, fleet: _Fleet, newest: RoundRecord, *, at_once: bool) -> None:
        """Wake those who can go on. Unless the mean is there already, the first of them takes it alone, so
        that it is taken once."""
        can_go_on = [name for name, (device, _) in fleet.waiting.items() if device.why(newest) is None]
        for name in can_go_on:
            del fleet.waiting[name]
            looked_at = self._wake(name)
            if looked_at is not None and not at_once:
                await looked_at
                at_once = True

    def _forget(self, fleet: _Fleet) -> None:
        horizon = self._clock() - FORGOTTEN_S
        while fleet.waiting:
            name, (_, asked_s) = next(iter(fleet.waiting.items()))
            if asked_s >= horizon:
                return
            del fleet.waiting[name]
