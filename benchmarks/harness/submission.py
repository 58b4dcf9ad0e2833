"""Submitting the benchmarks' jobs, and entering our agent for them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.harness.services import Contestant, Field
from benchmarks.harness.workloads import Setting, Workload
from server_worker.store import StoredJob, open_store
from spliteasy.job import Job
from spliteasy.job.file import parse_job


def enter_ours(
    field: Field,
    workload: Workload,
    name: str,
    setting: Setting,
    worker: int,
    *,
    broker: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Contestant:
    """Submit a job of the workload with this setting and start an agent for it."""
    running = field.services
    job = re.sub("[^a-z0-9]+", "-", f"{workload.name} {name}".lower())
    submit(workload.job(job, setting), running.store)
    state = str(running.folder / job)
    arguments = ["-m", "benchmarks.harness.agent_runner", workload.name, job, broker or running.broker, state]
    return field.enter(name, arguments, {"worker": worker, **running.pids()}, env)


def submit(job: dict[str, Any], store: str) -> None:
    """Make the job's package and put it into the store."""
    torch.set_num_threads(1)
    store_job(Job.create(parse_job(job), None), store)


def store_job(made: Job, store: str) -> None:
    """Put a package into the store."""
    asyncio.run(_put(made, store))


async def _put(job: Job, url: str) -> None:
    store = await open_store(url)
    try:
        await store.put_job(
            StoredJob(name=job.name, digest=job.digest, manifest=job.manifest, parts=dict(job.parts))
        )
    finally:
        await store.close()


async def until_served(url: str) -> None:
    """Return when a worker has told the store that it is there."""
    store = await open_store(url)
    try:
        while not await store.workers():  # noqa: ASYNC110 -- the store tells nobody
            await asyncio.sleep(0.1)
    finally:
        await store.close()
