"""Removal of sessions that nobody has touched for as long as their job says.

Sessions are looked at when they are due: each look says when the session may be abandoned at the earliest,
and it is due again then, so that those that are parked cost nothing meanwhile. Ages are by the store's own
clock, and it looks again in the script that deletes: a worker whose clock is wrong deletes nothing that
others would not. What a worker that is alive owns is left to that worker, which knows whether it was asked
for anything lately.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import structlog

from server_worker.job_cache import JobCache
from server_worker.store import SessionMeta, Store
from spliteasy.errors import SplitEasyError

log = structlog.get_logger(__name__)

FRESH_S = 60.0
"""A session touched so lately is kept whatever its job says."""

PAGE = 200
"""Sessions that are looked at in one round trip."""

SPARE_S = 1.0
"""A session is due this long after its retention has ended, so that the look finds it over."""

UNKNOWN_S = 3600.0
"""A session whose retention can't be known is looked at again after this long."""


async def forget_abandoned(
    store: Store, jobs: JobCache, *, own: str = "", idle_here_s: Callable[[str], float] = lambda _: math.inf
) -> list[str]:
    """Delete the sessions whose last change is older than their job's `durability.retention_s`.

    `own` is the owner nonce of this worker, and `idle_here_s` says how long it was not asked about a session
    (by a clock that nobody sets). Returns the names of what was deleted. Raises StoreError; what was deleted
    by then stays deleted.
    """
    owners = {worker.owner for worker in await store.workers()} - {own}
    if "" in owners:
        return []  # an older version does not say what it owns: once it has been upgraded
    forgotten, left = list[str](), 0
    while page := await store.due_sessions(PAGE, skip=left):
        now, waits_s = await store.now(), dict[str, float]()
        for meta in page:
            if meta.owner.nonce in owners:
                left += 1
                continue
            retention_s = await _retention_s(jobs, meta)
            if retention_s is None:
                waits_s[meta.session] = UNKNOWN_S
                continue
            idle_s = now - meta.updated_at
            wait_s = max(retention_s, FRESH_S) - min(idle_s, idle_here_s(meta.session))
            if wait_s >= 0:
                waits_s[meta.session] = wait_s + SPARE_S
            elif await store.forget_abandoned(meta.session, owner=meta.owner, idle_s=retention_s):
                log.info("an abandoned session was deleted", session=meta.session, idle_s=round(idle_s))
                forgotten.append(meta.session)
            else:
                waits_s[meta.session] = FRESH_S  # somebody touched it meanwhile
        await store.look_later(waits_s)
    return forgotten


async def _retention_s(jobs: JobCache, meta: SessionMeta) -> float | None:
    """Return how long the session's job keeps it, or None where that can't be known."""
    try:
        job = await jobs.get(meta.session.partition(".")[0], meta.job_digest)
    except SplitEasyError as error:
        log.warning("the retention of a session is not known", session=meta.session, error=error.message)
        return None
    return None if job is None else job.spec.durability.retention_s
