"""The parts of a simulated world: computations that take virtual time, a store that fails, watchers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, TypeVar

from server_worker.store import Done, SqliteStore
from spliteasy.errors import StoreUnavailable
from tests.simulation.faults import Faults

T = TypeVar("T")

WATCHED = frozenset({"open_session", "claim", "commit", "put_snapshot", "put_request", "close_session"})


class VirtualCompute:
    """Runs a computation at once, after some virtual time; calls of one process queue up."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._turn = asyncio.Lock()

    async def __call__(self, run: Callable[[], T]) -> T:
        async with self._turn:
            await asyncio.sleep(self._rng.expovariate(1 / 0.01))
            return run()


class Invariants:
    """What must hold all along, judged by what the store did and the workers answered."""

    def __init__(self, expected: dict[tuple[str, int], str]) -> None:
        self.violations: list[str] = []
        self._expected = expected
        """Digest of GRADIENT by session and step in the undisturbed run."""
        self._committed: dict[str, int] = {}
        self._fence: dict[str, int] = {}

    def opened(self, session: str, done: Done) -> None:
        self._fences(session, done)
        self._committed[session] = done.meta.committed

    def claimed(self, session: str, done: Done) -> None:
        self._fences(session, done)

    def committed(self, session: str, step: int, digest: str) -> None:
        last = self._committed.get(session, step)
        if step not in (last, last + 1):
            self.violations.append(f"{session}: step {step} was committed after {last}")
        self._committed[session] = step
        wanted = self._expected.get((session, step))
        if wanted is not None and digest != wanted:
            self.violations.append(f"{session}: step {step} was committed with other bits")

    def answered(self, session: str, step: int, digest: str) -> None:
        if self._expected.get((session, step), digest) != digest:
            self.violations.append(f"{session}: GRADIENT {step} has other bits")

    def rolled_back(self) -> None:
        """The store lost its last writes: what it had is no measure any more."""
        self._committed.clear()
        self._fence.clear()

    def _fences(self, session: str, done: Done) -> None:
        fence = done.meta.owner.fence
        if fence < self._fence.get(session, 0):
            self.violations.append(f"{session}: the fence fell from {self._fence[session]} to {fence}")
        self._fence[session] = fence


class FaultyStore:
    """One worker's way to the shared store: calls take time, fail before or after, or hang (a zombie's)."""

    def __init__(
        self,
        store: SqliteStore,
        faults: Faults,
        invariants: Invariants,
        *,
        crash: Callable[[], None],
        cut: Callable[[], None],
    ) -> None:
        self._store = store
        self._faults = faults
        self._invariants = invariants
        self._crash = crash
        self._cut = cut

    @property
    def loss_window_s(self) -> float:
        return self._store.loss_window_s

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in WATCHED:
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._call(name, method, args, kwargs)

        return call

    async def _call(self, name: str, method: Any, args: Any, kwargs: Any) -> Any:
        faults, rates = self._faults, self._faults.rates
        what = f"{name} {args[0]} {kwargs.get('step', '')}"
        await asyncio.sleep(faults.rng.expovariate(1 / 0.002))
        if faults.strikes(rates.store_before, "store fails before", what):
            raise StoreUnavailable("simulated: the store did not answer")
        if faults.strikes(rates.worker_crash, "worker dies before store call", what):
            self._crash()
            await asyncio.sleep(3600)
        if faults.strikes(rates.zombie, "zombie", what):
            self._cut()
            await asyncio.sleep(faults.rng.choice((0.5, 5.0, 30.0)))
        outcome = await method(*args, **kwargs)
        self._watch(name, args[0], kwargs, outcome)
        if faults.strikes(rates.worker_crash, "worker dies after store call", what):
            self._crash()
            await asyncio.sleep(3600)
        if faults.strikes(rates.store_after, "store fails after", what):
            raise StoreUnavailable("simulated: the store's answer was lost")
        return outcome

    def _watch(self, name: str, session: str, kwargs: Any, outcome: Any) -> None:
        if not isinstance(outcome, Done):
            return
        if name == "open_session":
            self._invariants.opened(session, outcome)
        elif name == "claim":
            self._invariants.claimed(session, outcome)
        elif name == "commit":
            self._invariants.committed(session, kwargs["step"], kwargs["gradient_digest"])
