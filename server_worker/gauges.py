"""Sets a worker's gauges, and says whether it is ready to serve."""

from __future__ import annotations

import asyncio

from broker.transport.topology import DEAD
from server_worker.metrics import (
    DEAD_WAITING,
    JOB_LIMIT,
    JOBS,
    LOG_BYTES,
    LOG_FILL,
    ROWS_BYTES,
    ROWS_LIMIT,
    SESSION_BYTES,
    SESSION_LIMIT,
    SESSIONS,
    SNAPSHOTS,
    UPLOAD_BYTES,
    UPLOAD_LIMIT,
    UPLOADS,
    WAITING,
    WAITING_BYTES,
    WAITING_LIMIT,
)
from server_worker.worker import Worker
from spliteasy.errors import LinkError, SplitEasyError
from spliteasy.observability.meter import Meter

PROBE_S = 2.0
"""Broker and store may take this long to answer a probe."""


async def measure(worker: Worker, meter: Meter) -> None:
    """Set the gauges."""
    held = worker.holdings()
    for metric, value in (
        (SESSIONS, held.sessions),
        (SESSION_BYTES, held.session_bytes),
        (SESSION_LIMIT, worker.config.memory_bytes),
        (JOBS, held.jobs),
        (JOB_LIMIT, held.job_limit),
        (WAITING, held.waiting),
        (WAITING_BYTES, worker.actors.memory_budget.taken_bytes),
        (WAITING_LIMIT, worker.actors.memory_budget.limit_bytes),
        (LOG_BYTES, held.log_bytes),
        (LOG_FILL, held.log_fill),
        (SNAPSHOTS, held.snapshots),
        (ROWS_BYTES, held.rows_bytes),
        (ROWS_LIMIT, worker.config.rows_bytes),
        (UPLOADS, held.uploads),
        (UPLOAD_BYTES, held.upload_bytes),
        (UPLOAD_LIMIT, worker.config.uploads.total_bytes),
    ):
        meter.set(metric, value)
    try:
        async with asyncio.timeout(PROBE_S):
            depth = await worker.depth(DEAD)
    except (LinkError, TimeoutError):
        return  # the broker is away: the last figure stands, and /readyz tells
    meter.set(DEAD_WAITING, depth.messages if depth is not None else 0)


async def why_not_ready(worker: Worker) -> str | None:
    """None when the worker is subscribed at the broker and the store answers."""
    if not worker.connected.is_set():
        return "not connected to the broker"
    try:
        async with asyncio.timeout(PROBE_S):
            await worker.store.workers()
    except (SplitEasyError, TimeoutError):
        return "the store does not answer"
    return None
