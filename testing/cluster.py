"""A broker, a store and workers that serve one job, and the devices that train it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from broker import Transport, connect
from broker.transport.in_process import MemoryBroker
from device_agent.agent import Agent, AgentResult
from device_agent.config import AgentConfig
from device_agent.link.link import Connect
from server_worker.config import Trust, WorkerConfig
from server_worker.store import SqliteStore, Store, StoredJob, open_store
from server_worker.worker import Worker
from spliteasy.job import Job, load_job_file
from spliteasy.runtime import user_code
from spliteasy_cli.support.embedded import ConnectAs, async_connect, run_agent, workers_running

LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The parts that serve a job while `serving` is entered."""

    job: StoredJob
    store: Store
    workers: Sequence[Worker]
    connect_as: ConnectAs
    """Connects to the broker as the principal named: a device, or a worker."""

    def connect(self, device: str) -> Connect:
        """Return the way in which an agent of that device connects."""
        return partial(self.connect_as, device)

    async def train(
        self,
        config: AgentConfig,
        *,
        stop: asyncio.Event | None = None,
        limit_s: float = LIMIT_S,
        **parts: Any,
    ) -> tuple[AgentResult, Agent]:
        """Run the device's agent to its end, or until `stop` is set; return its result and itself.

        `parts` are further arguments of `Agent`, such as `observe` or `meter`. Raises what the agent raises,
        and TimeoutError after `limit_s` seconds.
        """
        async with asyncio.timeout(limit_s):
            parts = {"connect": self.connect(config.device), **parts}
            return await run_agent(config, parts.pop("connect"), stop=stop, **parts)


@asynccontextmanager
async def serving(
    job: Job | StoredJob | Path | str,
    *,
    broker: MemoryBroker | str | None = None,
    store: str | None = None,
    workers: int = 1,
    config: WorkerConfig | None = None,
    **parts: Any,
) -> AsyncIterator[Cluster]:
    """Serve a job, or the job file at a path, until the context is left.

    `broker` and `store` are URLs of real ones, or None for ones of this process. `config` has the workers'
    settings, and `parts` further arguments of each `Worker`. What is raised within is raised; a worker that
    ends with an error cancels what runs within, and its error is raised in an ExceptionGroup.
    """
    stored = _stored(job)
    opened = await open_store(store) if store is not None else SqliteStore(None, inline=True)
    connect_as = _at(broker) if isinstance(broker, str) else async_connect(broker or MemoryBroker())
    trust = Trust.OPEN if isinstance(broker, str) else Trust.ENROLLED  # a broker of this process has accounts
    try:
        await opened.put_job(stored)
        running = workers_running(workers, opened, connect_as, trust=trust, config=config, **parts)
        failed: Exception | None = None
        async with running as served:
            try:
                yield Cluster(stored, opened, served, connect_as)
            except Exception as error:
                failed = error  # raised outside of the workers' task group, which would wrap it
        if failed is not None:
            raise failed
    finally:
        await opened.close()


def _stored(job: Job | StoredJob | Path | str) -> StoredJob:
    if isinstance(job, StoredJob):
        return job
    if not isinstance(job, Job):
        job = Job.create(load_job_file(Path(job)), user_code.project_root(Path(job)))
    return StoredJob(name=job.name, digest=job.digest, manifest=job.manifest, parts=job.parts)


def _at(url: str) -> ConnectAs:
    async def connect_as(_principal: str) -> Transport:
        return await connect(url)

    return connect_as
