"""The parts of a simulated world: computations that take virtual time, a store that fails, watchers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, TypeVar

from broker import decode
from broker.protocol import messages as m
from broker.protocol.envelope import MAGIC
from server_worker.store import Attempt, Blob, Done, Owner, SessionMeta, SqliteStore
from spliteasy.errors import StoreUnavailable
from spliteasy.runtime.torch_thread import NO_MEMORY, guarded
from tests.simulation.faults import Faults
from tests.simulation.releases import Releases
from tests.simulation.replies import Replies

T = TypeVar("T")

WATCHED = frozenset(
    {"open_session", "claim", "commit", "put_snapshot", "keep_snapshot", "put_request", "close_session"}
)


class VirtualCompute:
    """Runs a computation at once, after some virtual time; calls of one process queue up."""

    def __init__(self, rng: random.Random, faults: Faults | None = None) -> None:
        self._rng = rng
        self._faults = faults
        self._turn = asyncio.Lock()

    async def __call__(self, run: Callable[[], T]) -> T:
        async with self._turn:
            await asyncio.sleep(self._rng.expovariate(1 / 0.01))
            if self._faults is None:
                return run()
            rates = self._faults.rates
            if self._faults.strikes(rates.no_memory, "no memory before a computation", ""):
                return guarded(_starve)
            result = run()
            if self._faults.strikes(rates.no_memory, "no memory within a computation", ""):
                return guarded(_starve)
            return result


def _starve() -> Any:
    raise RuntimeError(f"DefaultCPUAllocator: {NO_MEMORY}")


class Invariants:
    """The invariants that must hold all along, judged by what the store did and the workers answered."""

    def __init__(self, expected: dict[tuple[str, int], str]) -> None:
        self.violations: list[str] = []
        self._expected = expected
        """Digest of GRADIENT by session and step in the undisturbed run."""
        self.codecs: dict[str, dict[int, list[str]]] = {}
        """The codecs that the log names, in the order of the choices, by session and committed step."""
        self._written: dict[tuple[str, Attempt, Owner, int], dict[int, tuple[str, list[str]]]] = {}
        self._committed: dict[str, int] = {}
        self.releases: dict[str, Releases] = {}
        """By session, under DP-SGD."""
        self.replies: Replies | None = None
        """There where the devices are a fleet."""
        self._newest: dict[str, SessionMeta] = {}
        """The record of each session as it was opened or claimed last."""

    def opened(self, session: str, done: Done) -> None:
        self._owned(session, done)
        self._committed[session] = done.meta.committed

    def claimed(self, session: str, attempt: Attempt, done: Done) -> None:
        newest = self._newest.get(session)
        if newest is not None and newest.attempt != attempt:
            self.violations.append(f"{session}: it was claimed for attempt {attempt.number}")
        self._owned(session, done)

    def committed(self, session: str, step: int, digest: str, attempt: Attempt, owner: Owner) -> None:
        newest = self._newest.get(session)
        if newest is not None and newest.attempt != attempt:
            self.violations.append(f"{session}: step {step} was committed by attempt {attempt.number}")
        if newest is not None and newest.owner != owner:
            self.violations.append(f"{session}: step {step} was committed by a worker that owned it before")
        if self.replies is not None:
            self.replies.committed(session, step)
        last = self._committed.get(session, step)
        if step not in (last, last + 1):
            self.violations.append(f"{session}: step {step} was committed after {last}")
        self._committed[session] = step
        written = self._written.get((session, attempt, owner, step), {})
        by_kind = {kind: codecs for _, (kind, codecs) in sorted(written.items(), reverse=True)}
        forward, backward = by_kind.get("FORWARD", []), by_kind.get("BACKWARD", [])
        self.codecs.setdefault(session, {})[step] = [*forward, *backward]
        if {tuple(codecs) for _, codecs in written.values()} > {tuple(forward), tuple(backward)}:
            self.violations.append(f"{session}: micro-batches of step {step} have different codecs")
        if digest != self._expected.get((session, step), digest):
            self.violations.append(f"{session}: step {step} was committed with other bits")

    def written(
        self, session: str, step: int, index: int, body: Blob, attempt: Attempt, owner: Owner
    ) -> None:
        if bytes(memoryview(body)[: len(MAGIC)]) != MAGIC:
            return  # a mean, beside the request that it answers
        request = decode(body)
        if isinstance(request, m.Ready):
            return
        assert isinstance(request, m.Forward | m.Backward)
        codecs = [request.codec, *([request.reply_codec] if request.reply_codec else [])]
        self._written.setdefault((session, attempt, owner, step), {})[index] = request.kind, codecs

    def _owned(self, session: str, done: Done) -> None:
        before = self._newest.get(session)
        if before is not None and done.meta.owner.fence < before.owner.fence:
            self.violations.append(f"{session}: the fence fell")
        self._newest[session] = done.meta

    def rolled_back(self) -> None:
        """The store lost its last writes: what it had is no measure any more."""
        self._committed.clear()
        self._newest.clear()
        if self.replies is not None:
            self.replies.rolled_back()


class FaultyFleets:
    """The part of the store that has a fleet's rounds, with the same faults at every call."""

    def __init__(self, store: FaultyStore, fleets: Any) -> None:
        self._store = store
        self._fleets = fleets

    def __getattr__(self, name: str) -> Any:
        return self._store.failing(name, getattr(self._fleets, name))


class FaultyStore:
    """One worker's way to the shared store: calls take time, fail before or after, or hang (a zombie's)."""

    def __init__(
        self,
        store: SqliteStore,
        faults: Faults,
        invariants: Invariants,
        *,
        crash: Callable[[], object],
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

    @property
    def fleets(self) -> Any:
        return FaultyFleets(self, self._store.fleets)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        return self.failing(name, method) if name in WATCHED else method

    def failing(self, name: str, method: Any) -> Any:
        """The method as one that fails now and then."""

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
        if name == "put_request":
            self._invariants.written(session, **kwargs)
        if name == "append_round" and self._invariants.replies is not None and outcome is not None:
            self._invariants.replies.appended(outcome)
        if not isinstance(outcome, Done):
            return
        if name == "open_session":
            self._invariants.opened(session, outcome)
        elif name == "claim":
            self._invariants.claimed(session, kwargs["attempt"], outcome)
        elif name == "commit":
            self._invariants.committed(
                session, kwargs["step"], kwargs["gradient_digest"], kwargs["attempt"], kwargs["owner"]
            )
