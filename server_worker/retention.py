"""Removal of sessions that nobody has touched for as long as their job says."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from server_worker.jobs import JobCache
from server_worker.store import Store
from spliteasy.errors import SplitEasyError

log = structlog.get_logger(__name__)

FRESH_S = 60.0
"""A session touched so lately is not looked at any closer."""


async def forget_abandoned(
    store: Store, jobs: JobCache, *, clock: Callable[[], float] = time.time
) -> list[str]:
    """Delete the sessions whose last change is older than their job's `durability.retention_s`.

    Returns their names. Raises StoreError; what was deleted by then stays deleted.
    """
    forgotten = []
    for meta in await store.sessions():
        idle_s = clock() - meta.updated_at
        if idle_s < FRESH_S:
            continue
        try:
            job = await jobs.get(meta.session.partition(".")[0], meta.job_digest)
        except SplitEasyError as error:
            log.warning("no retention known", session=meta.session, error=error.message)
            continue
        if job is not None and idle_s > job.spec.durability.retention_s and await store.forget(meta.session):
            log.info("abandoned session deleted", session=meta.session, idle_s=round(idle_s))
            forgotten.append(meta.session)
    return forgotten
