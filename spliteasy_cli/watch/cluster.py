"""A snapshot of what broker and store hold, and a connection to both for looking again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from spliteasy.errors import LinkError, StoreError
from spliteasy_cli.support.endpoints import broker_at, store_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker import Depth, Transport
    from server_worker.store import SessionMeta, Store, WorkerInfo

T = TypeVar("T")
LOOK_S = 5.0
"""Broker and store may take this long for one look of --watch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSnapshot:
    """A snapshot of what broker and store hold."""

    jobs: Mapping[str, Sequence[str]]
    sessions: Sequence[SessionMeta]
    """All, or a page of them."""
    names: Sequence[str]
    """The names of all sessions."""
    workers: Sequence[WorkerInfo]
    front: Depth | None
    shards: Sequence[Depth | None]
    dead: Depth | None


class ClusterClient:
    """One connection to broker and store for many looks; a new one after a look that failed."""

    def __init__(self, broker: str | None, store: str | None) -> None:
        self._broker, self._store = broker, store
        self._connections = AsyncExitStack()
        self._parts: tuple[Transport, Store] | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> ClusterClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connections.aclose()

    async def look(self) -> ClusterSnapshot:
        """Raises LinkError and StoreError."""
        return await self.ask(take_snapshot)

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


async def take_snapshot(
    transport: Transport, store: Store, *, newest: int | None = None, skip: int = 0
) -> ClusterSnapshot:
    """Look at all sessions, by name, or at the `newest` of them after leaving out `skip`."""
    from broker.transport import topology

    shards = await store.shards() or 0  # none before the stack's first worker
    if newest is None:
        sessions = sorted(await store.sessions(), key=lambda meta: meta.session)
        names: Sequence[str] = [meta.session for meta in sessions]
    else:
        sessions = [*await store.newest_sessions(newest, skip=skip)]
        names = await store.session_names()
    return ClusterSnapshot(
        jobs=await store.job_versions(),
        sessions=sessions,
        names=names,
        workers=sorted(await store.workers(), key=lambda worker: worker.worker),
        front=await transport.depth(topology.FRONT),
        shards=[await transport.depth(topology.shard_queue(n).name) for n in range(shards)],
        dead=await transport.depth(topology.DEAD),
    )
