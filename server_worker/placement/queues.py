"""The broker's queues that a worker reads, and how it lets go of them for others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import structlog

from broker.transport.base import Delivery, Subscription, Transport
from broker.transport.topology import shard_of, shard_queue
from server_worker.actors import Actors
from server_worker.config import WorkerConfig
from server_worker.store import Store
from spliteasy.errors import LinkError, LinkRefused, StoreError

log = structlog.get_logger(__name__)

LEFT_S = 30.0
"""A worker stays away this long from a shard with a session that it can't serve."""


class Queues:
    """The subscriptions of one life of a connection after the other."""

    def __init__(self, config: WorkerConfig, actors: Actors, store: Store) -> None:
        self.subscriptions: dict[str, Subscription] = {}
        self._config = config
        self._actors = actors
        self._store = store
        self._draining = False
        self._left: set[str] = set()
        """Queues that are left to others for now."""
        self._log = log.bind(worker=config.name)

    async def read(
        self, transport: Transport, queue: str, take: Callable[[Delivery, Subscription], Awaitable[None]]
    ) -> None:
        """Serve one queue for as long as the connection lives; subscribe again after a handover."""
        while True:
            self._left.discard(queue)
            try:
                subscription = await transport.subscribe(queue, prefetch=self._config.prefetch)
            except LinkRefused:
                if await transport.depth(queue) is not None:
                    raise
                raise LinkError(f"the queue {queue} was deleted") from None  # and is declared again
            self.subscriptions[queue] = subscription
            async for delivery in subscription:
                await take(delivery, subscription)
            if self._draining:
                return
            await self._actors.park(self._actors.of_queue(queue))
            await subscription.close()
            if queue in self._left:
                await asyncio.sleep(LEFT_S)

    async def let_go(self, shards: Iterable[int]) -> None:
        """Let go of shards, or of places in the line for them: this worker is the last in line then."""
        for shard in shards:
            queue = shard_queue(shard).name
            if subscription := self.subscriptions.get(queue):
                await self._give(queue, subscription)

    async def leave(self, session: str, why: str) -> None:
        """Leave the session's shard to others for a while, where there are any."""
        shard = shard_of(session, self._config.shards)
        queue = shard_queue(shard).name
        try:
            workers = await self._store.workers()
        except StoreError:
            return  # it is asked for again
        others = [each for each in workers if each.worker != self._config.name and each.state == "serving"]
        if not others or queue in self._left:
            return
        self._left.add(queue)
        self._log.warning("leaving a shard to other workers", shard=shard, session=session, reason=why)
        with suppress(LinkError):
            await self.let_go([shard])

    async def drain(self) -> None:
        """Take nothing new from any queue, for good."""
        self._draining = True
        for queue, subscription in list(self.subscriptions.items()):
            with suppress(LinkError):
                await self._give(queue, subscription)

    async def close(self) -> None:
        """The connection has ended."""
        for subscription in self.subscriptions.values():
            await subscription.close()
        self.subscriptions.clear()

    async def _give(self, queue: str, subscription: Subscription) -> None:
        """Snapshot the queue's sessions, then take nothing more from it: the next in line gets it at once,
        and replays the steps since.
        """
        await self._actors.save(self._actors.of_queue(queue))
        await subscription.cancel()
