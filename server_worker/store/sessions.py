"""The calls that move a session, for every store: `rules.py` decides, and a conditional write follows.

A store keeps of each session one record with a version that is never used twice. A call decides on the record
that this process saw last, so that a commit takes one round trip. The write names the version that it was
decided on; where another has taken its place, nothing is written, and the call decides again on that one. A
refusal is told only of a record that was just read. Calls of one process on one session take turns, so that
they don't lose to each other.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast
from weakref import WeakValueDictionary

from server_worker.store import rules
from server_worker.store.base import (
    Attempt,
    ClaimOutcome,
    CommitOutcome,
    Done,
    OpenOutcome,
    Owner,
    SessionMeta,
    UnknownSession,
)
from server_worker.store.staging import StagedRequests
from spliteasy.errors import StoreUnavailable

TRIES = 16
"""A call decides so often at most before it gives up: others have moved the session each time."""

HELD_RECORDS = 4096
"""A process remembers the records of so many sessions, those that it used last."""

_O = TypeVar("_O")
"""The outcomes of a call, of which one is Done."""
_B = TypeVar("_B")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Versioned:
    """A session's record as it stood at some time, and the name of that version."""

    version: str
    meta: SessionMeta


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Generic[_B]):
    """One conditional write: the record, and what is stored or deleted together with it."""

    session: str
    before: Versioned | None
    """The record must still be this one; None: there must be none."""
    after: Versioned | None
    """It takes the place of `before`; None: the session is deleted with all that it has."""
    beside: _B | None
    """The data that the new record reaches, in the store's own form."""
    touch: bool
    """The session counts as used now."""
    idle_s: float | None = None
    """The session must not have been used for longer than this, by the store's clock when it writes."""

    @property
    def dropped_steps(self) -> Sequence[int]:
        """The steps whose log entries go."""
        return rules.dropped_steps(_meta(self.before), _meta(self.after))

    @property
    def dropped_snapshots(self) -> Sequence[int]:
        """The steps whose snapshots go."""
        return rules.dropped_snapshots(_meta(self.before), _meta(self.after))

    @property
    def moved_hands(self) -> bool:
        """Another attempt or owner begins: what the one before has put aside is of no use any more."""
        before, after = _meta(self.before), _meta(self.after)
        return (
            before is None or after is None or (before.attempt, before.owner) != (after.attempt, after.owner)
        )


@dataclass(frozen=True, slots=True)
class Written:
    """The write took place; `meta` is the session as it stands now, None where it was deleted."""

    meta: SessionMeta | None


@dataclass(frozen=True, slots=True)
class Moved:
    """Nothing was written: this is the record that stands there, None where there is none."""

    now: Versioned | None


class Sessions(ABC, Generic[_B, _R]):
    """The part of a store that moves sessions. `_B` is the form of what is stored beside a record, `_R` that
    of a request which waits for its commit, for `put_ttl_s` by `ticks`.
    """

    def __init__(self, *, put_ttl_s: float, ticks: Callable[[], float]) -> None:
        self._requests: StagedRequests[_R] = StagedRequests(ttl_s=put_ttl_s, clock=ticks)
        self._held: OrderedDict[str, Versioned] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._instance = secrets.token_hex(8)
        self._count = itertools.count()

    @abstractmethod
    async def _load(self, session: str) -> Versioned | None:
        """Read the record."""

    @abstractmethod
    async def _store(self, change: Change[_B]) -> Written | Moved:
        """Make the change as one, if the record is the one that it was decided on; the same again is Written.

        Raises StoreError, with nothing changed, where data that it names is not there any more.
        """

    @abstractmethod
    def _logged(self, session: str, step: int, gradient_digest: str, requests: Sequence[_R | None]) -> _B:
        """Return the log entry of a step; a request that is None is not there any more."""

    async def _discard(self, session: str, beside: _B) -> None:
        """Delete what was written for a change that was not made, unless an earlier copy of it was."""

    # the contract's calls

    async def session(self, session: str) -> SessionMeta | None:
        return _meta(await self._looked(session))

    async def open_session(self, session: str, **asked: Any) -> OpenOutcome:
        return await self._move(session, lambda meta: rules.opened(meta, session, **asked))

    async def hand_over(self, session: str, **asked: Any) -> CommitOutcome:
        return await self._move(session, lambda meta: rules.handed_over(meta, **asked))

    async def claim(self, session: str, **asked: Any) -> ClaimOutcome:
        return await self._move(session, lambda meta: rules.claimed(meta, **asked))

    async def keep_snapshot(self, session: str, **asked: Any) -> CommitOutcome:
        return await self._move(session, lambda meta: rules.kept(meta, **asked))

    async def close_session(self, session: str, **asked: Any) -> CommitOutcome:
        return await self._move(session, lambda meta: rules.closed(meta, **asked))

    async def keep_requests(self, session: str, *, attempt: Attempt, owner: Owner) -> None:
        self._requests.keep(session, attempt=attempt, owner=owner)

    async def commit(
        self,
        session: str,
        *,
        attempt: Attempt,
        owner: Owner,
        step: int,
        requests: int,
        gradient_digest: str,
        oldest_checkpoint: int,
    ) -> CommitOutcome:
        found = self._requests.get(session, step=step, attempt=attempt, owner=owner, count=requests)
        outcome = await self._move(
            session,
            lambda meta: rules.committed(
                meta,
                attempt=attempt,
                owner=owner,
                step=step,
                gradient_digest=gradient_digest,
                oldest_checkpoint=oldest_checkpoint,
            ),
            beside=self._logged(session, step, gradient_digest, found),
            reached=lambda before, after: before.committed < after.committed,
        )
        self._requests.drop(session, step=step, owner=owner)
        return outcome

    async def pause(self, session: str, paused: bool) -> bool:
        def decided(meta: SessionMeta | None) -> Done | UnknownSession:
            return UnknownSession() if meta is None else Done(meta=replace(meta, paused=paused))

        return isinstance(await self._move(session, decided, touch=False), Done)

    async def forget(self, session: str) -> bool:
        self._requests.drop_session(session)
        return await self._delete(session, lambda meta: True)

    async def forget_abandoned(self, session: str, *, owner: Owner, idle_s: float) -> bool:
        # The age is the store's to judge, when it deletes: `Change.idle_s`.
        return await self._delete(session, lambda meta: meta.owner == owner, idle_s=idle_s)

    # how they are made

    async def _move(
        self,
        session: str,
        decide: Callable[[SessionMeta | None], _O],
        *,
        beside: _B | None = None,
        reached: Callable[[SessionMeta, SessionMeta], bool] = lambda before, after: True,
        touch: bool = True,
    ) -> _O:
        """Decide, and store what was decided; with `beside`, if the record after reaches it and that before
        did not."""
        async with self._turn(session):
            outcome, used = await self._moved(session, decide, beside, reached, touch)
            if beside is not None and not used:
                await self._discard(session, beside)
            return outcome

    async def _moved(
        self,
        session: str,
        decide: Callable[[SessionMeta | None], _O],
        beside: _B | None,
        reached: Callable[[SessionMeta, SessionMeta], bool],
        touch: bool,
    ) -> tuple[_O, bool]:
        now = self._held.get(session)
        looked = now is None
        if looked:
            now = await self._looked(session)
        for _ in range(TRIES):
            outcome = decide(_meta(now))
            if not isinstance(outcome, Done):
                if looked:
                    return outcome, False
                now, looked = await self._looked(session), True
                continue
            unchanged = now is not None and not touch and outcome.meta == now.meta
            version = now.version if now is not None and unchanged else self._unique()
            used = now is not None and reached(now.meta, outcome.meta)
            change = Change(
                session=session,
                before=now,
                after=Versioned(version, outcome.meta),
                beside=beside if used else None,
                touch=touch,
            )
            stored = await self._store(change)
            if isinstance(stored, Written):
                assert stored.meta is not None
                self._hold(session, Versioned(version, stored.meta))
                return cast(_O, Done(meta=stored.meta)), used
            now, looked = stored.now, True
            self._hold(session, now)
        raise StoreUnavailable(f"session {session} was moved by others again and again")

    async def _delete(
        self, session: str, decide: Callable[[SessionMeta], bool], *, idle_s: float | None = None
    ) -> bool:
        async with self._turn(session):
            now = await self._looked(session)
            for _ in range(TRIES):
                if now is None or not decide(now.meta):
                    return False
                change: Change[_B] = Change(
                    session=session, before=now, after=None, beside=None, touch=False, idle_s=idle_s
                )
                stored = await self._store(change)
                if isinstance(stored, Written):
                    self._hold(session, None)
                    return True
                if stored.now is not None and stored.now.version == now.version:
                    return False  # it was used lately
                now = stored.now
        raise StoreUnavailable(f"session {session} was moved by others again and again")

    async def _looked(self, session: str) -> Versioned | None:
        found = await self._load(session)
        self._hold(session, found)
        return found

    def _turn(self, session: str) -> asyncio.Lock:
        turn = self._turns.get(session)
        if turn is None:
            turn = self._turns[session] = asyncio.Lock()
        return turn

    def _hold(self, session: str, record: Versioned | None) -> None:
        self._held.pop(session, None)
        if record is not None:
            self._held[session] = record
            if len(self._held) > HELD_RECORDS:
                self._held.popitem(last=False)

    def _unique(self) -> str:
        """Return a name that was never given before."""
        return f"{self._instance}-{next(self._count)}"


def _meta(record: Versioned | None) -> SessionMeta | None:
    return None if record is None else record.meta
