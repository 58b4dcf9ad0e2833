"""Submitting the benchmarks' jobs."""

from __future__ import annotations

import asyncio
from typing import Any

import torch

from server_worker.store import StoredJob, open_store
from spliteasy.job import Job
from spliteasy.job.file import parse_job


def submit(job: dict[str, Any], store: str) -> None:
    """Make the job's package and put it into the store."""
    torch.set_num_threads(1)
    made = Job.create(parse_job(job), None)
    asyncio.run(_put(made, store))


async def _put(job: Job, url: str) -> None:
    store = await open_store(url)
    try:
        await store.put_job(
            StoredJob(name=job.name, digest=job.digest, manifest=job.manifest, parts=dict(job.parts))
        )
    finally:
        await store.close()
