"""A snapshot of what broker and store hold, and a connection to both for looking again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from spliteasy.errors import LinkError, StoreError
from spliteasy_cli.support.endpoints import broker_at, store_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker import Depth, Transport
    from server_worker.store import SessionMeta, Store, WorkerInfo

T = TypeVar("T")
FOLLOWED = 200
"""A look is at this many sessions, those that changed last, however many there are."""

ACTIVE_S = 60.0
"""A session counts as active for this long after its last change."""

LOOK_S = 5.0
"""Broker and store may take this long for one look of --watch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSnapshot:
    """A snapshot of what broker and store hold."""

    jobs: Mapping[str, Sequence[str]]
    sessions: Sequence[SessionMeta]
    """All by name, or a page of those that changed last."""
    session_count: int
    """The number of all."""
    by_job: Mapping[str, int]
    """The number of each job's."""
    workers: Sequence[WorkerInfo]
    front: Depth | None
    shards: Sequence[Depth | None]
    dead: Depth | None
    active: int = 0
    """The sessions that changed within ACTIVE_S."""
    forgotten: Sequence[str] = ()
    """Sessions of the look before that are not there any more, where not all are looked at."""

    @property
    def complete(self) -> bool:
        """Return whether all sessions are in it."""
        return len(self.sessions) == self.session_count


class ClusterClient:
    """One connection to broker and store for many looks; a new one after a look that failed."""

    def __init__(self, broker: str | None, store: str | None) -> None:
        self._broker, self._store = broker, store
        self._connections = AsyncExitStack()
        self._parts: tuple[Transport, Store] | None = None
        self._turn = asyncio.Lock()
        self._seen: frozenset[str] = frozenset()
        """The sessions of the last look."""

    async def __aenter__(self) -> ClusterClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connections.aclose()

    async def look(self) -> ClusterSnapshot:
        """Look at what is active: FOLLOWED sessions at most. Raises LinkError and StoreError."""
        return await self.ask(self._look)

    async def _look(self, transport: Transport, store: Store) -> ClusterSnapshot:
        picture = await take_snapshot(transport, store, newest=FOLLOWED)
        names = frozenset(meta.session for meta in picture.sessions)
        missing = sorted(self._seen - names)
        left = {meta.session for meta in await store.sessions_named(missing)} if missing else set()
        self._seen = names
        return replace(
            picture,
            sessions=sorted(picture.sessions, key=lambda meta: meta.session),
            forgotten=[name for name in missing if name not in left],
        )

    async def ask(self, question: Callable[[Transport, Store], Awaitable[T]]) -> T:
        """Ask one question at a time. Raises LinkError, StoreError, and what the question raises."""
        async with self._turn:
            try:
                async with asyncio.timeout(LOOK_S):
                    if self._parts is None:
                        store = await self._connections.enter_async_context(
                            store_at(self._store, deferred_s=0)
                        )
                        transport = await self._connections.enter_async_context(
                            broker_at(self._broker, deferred_s=0)
                        )
                        self._parts = transport, store
                    return await question(*self._parts)
            except (LinkError, StoreError, TimeoutError) as error:
                self._parts = None
                await self._connections.aclose()
                if isinstance(error, TimeoutError):
                    raise LinkError("broker and store do not answer") from None
                raise


async def take_snapshot(transport: Transport, store: Store, *, newest: int, skip: int = 0) -> ClusterSnapshot:
    """Look at the `newest` sessions, the last changed first, after leaving out `skip`; and at all else.

    It costs the same however many sessions there are.
    """
    from broker.transport import topology

    shards = await store.shards() or 0  # none before the stack's first worker
    sessions = await store.newest_sessions(newest, skip=skip)
    jobs = await store.job_versions()
    return ClusterSnapshot(
        jobs=jobs,
        sessions=sessions,
        session_count=await store.session_count(),
        by_job=await store.session_counts(list(jobs)),
        active=await store.active_count(ACTIVE_S),
        workers=sorted(await store.workers(), key=lambda worker: worker.worker),
        front=await transport.depth(topology.FRONT),
        shards=[await transport.depth(topology.shard_queue(n).name) for n in range(shards)],
        dead=await transport.depth(topology.DEAD),
    )
