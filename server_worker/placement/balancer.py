"""Hands shards on to workers with too few sessions, as `plan.py` plans it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog

from broker.transport.base import Depth
from broker.transport.topology import FRONT
from server_worker.config import WorkerConfig
from server_worker.placement.plan import plan_moves
from server_worker.placement.queues import Queues
from server_worker.store import WorkerInfo

log = structlog.get_logger(__name__)

SETTLE_BEATS = 3
"""After shards were handed on, this many heartbeats pass until all can see where they went."""


class Balancing:
    """One worker's part in evening the load: first make way for who has too few, then let go."""

    def __init__(
        self,
        config: WorkerConfig,
        queues: Queues,
        *,
        depth: Callable[[str], Awaitable[Depth | None]],
        clock: Callable[[], float],
    ) -> None:
        """`depth` tells what a queue of the broker holds."""
        self._config = config
        self._queues = queues
        self._depth = depth
        self._clock = clock
        self._in_line_for: frozenset[str] = frozenset()
        """Workers with too few sessions that this one has made way for."""
        self._settled_at = 0.0
        self._log = log.bind(worker=config.name)

    async def balance(self, load: dict[int, int], workers: Sequence[WorkerInfo]) -> None:
        """Hand shards on, at each heartbeat. `load` counts the active sessions of each shard served here."""
        plan = plan_moves(self._config.name, load, workers)
        if plan.takers and not await self._all_subscribed(workers):
            return
        takers = frozenset(plan.takers)
        if not takers <= self._in_line_for:
            self._in_line_for = takers
            others = [n for n in range(self._config.shards) if n not in load]
            await self._queues.let_go([n for n in others if plan.next_in_line(n) != self._config.name])
            return  # by the next heartbeat all have seen the same, and made way
        if not takers:
            self._in_line_for = frozenset()
        if plan.give and self._clock() >= self._settled_at:
            self._settled_at = self._clock() + SETTLE_BEATS * self._config.heartbeat_s
            self._log.info("the worker hands shards over", shards=plan.give)
            await self._queues.let_go(plan.give)

    async def _all_subscribed(self, workers: Sequence[WorkerInfo]) -> bool:
        """Return whether the broker still knows as many workers: one that died a moment ago has a heartbeat
        yet."""
        front = await self._depth(FRONT)
        return front is not None and front.consumers >= sum(each.state == "serving" for each in workers)
