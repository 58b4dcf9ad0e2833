"""A worker's heartbeat: what it tells the others, and what it looks after meanwhile."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import structlog

from server_worker.actors import Actors
from server_worker.config import WorkerConfig
from server_worker.job_cache import JobCache
from server_worker.placement.balancer import Balancing
from server_worker.placement.retention import forget_abandoned
from server_worker.store import Store, WorkerInfo
from server_worker.store.base import PUT_TTL_S
from spliteasy.errors import SplitEasyError

log = structlog.get_logger(__name__)


class BeatingWorker(Protocol):
    """The part of a worker that its heartbeat tells of and looks after."""

    config: WorkerConfig
    store: Store
    jobs: JobCache
    actors: Actors
    balancing: Balancing
    clock: Callable[[], float]
    steps: int

    @property
    def state(self) -> str: ...
    async def wait_connected(self, most_s: float) -> None: ...
    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]: ...


class Heartbeat:
    """Presence in the store, programs of the others, fair share, memory budget, retention."""

    def __init__(self, worker: BeatingWorker) -> None:
        self._worker = worker
        self._started_at = time.time()
        self._loading_ahead: asyncio.Task[Any] | None = None
        self._log = log.bind(worker=worker.config.name)

    async def run(self) -> None:
        """Beat until cancelled, at first when the worker is connected; survives what fails in between."""
        worker, every_s = self._worker, self._worker.config.heartbeat_s
        swept_at = kept_at = worker.clock()
        await worker.wait_connected(every_s)
        while True:
            try:
                await self._beat()
                if worker.clock() - kept_at >= PUT_TTL_S / 4:
                    kept_at = worker.clock()
                    await worker.actors.keep_requests(worker.store)
                if worker.clock() - swept_at >= worker.config.retention_check_s:
                    swept_at = worker.clock()
                    await forget_abandoned(
                        worker.store,
                        worker.jobs,
                        own=worker.actors.identity.nonce,
                        idle_here_s=worker.actors.idle_s,
                    )
                    await worker.store.sweep()
            except SplitEasyError as error:
                self._log.warning("the heartbeat failed", error=error.message)
            await asyncio.sleep(every_s)

    async def _beat(self) -> None:
        worker, info = self._worker, self._info()
        await worker.store.heartbeat(info, ttl_s=worker.config.heartbeat_s * 5)
        await worker.actors.park_forbidden(worker.store)
        workers = await worker.store.workers()
        self._load_ahead(workers)
        if worker.config.balance and info.state == "serving":
            await worker.balancing.balance(worker.actors.active_by_shard(), workers)
        await worker.actors.keep_budget()

    def _info(self) -> WorkerInfo:
        worker = self._worker
        load = worker.actors.active_by_shard()
        return WorkerInfo(
            worker=worker.config.name,
            started_at=self._started_at,
            sessions=sum(load.values()),
            shards=tuple(sorted(load)),
            steps=worker.steps,
            host=socket.gethostname(),
            pid=os.getpid(),
            state=worker.state,
            jobs=worker.actors.jobs(),
            owner=worker.actors.identity.nonce,
        )

    def _load_ahead(self, workers: Sequence[WorkerInfo]) -> None:
        """Load the programs of the others' sessions: a takeover then waits for none."""
        worker = self._worker
        wanted = sorted({job for each in workers if each.worker != worker.config.name for job in each.jobs})

        async def load() -> None:
            try:
                for job in await worker.jobs.load_ahead(wanted):
                    self._log.info("a job was loaded ahead", job=job)
            except SplitEasyError as error:
                self._log.warning("no job could be loaded ahead", error=error.message)

        if self._loading_ahead is None or self._loading_ahead.done():
            self._loading_ahead = worker.background(load())
