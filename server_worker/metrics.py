"""The metrics of a worker: their declarations, and the meters around its store and its torch thread."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from broker.protocol import messages as m
from server_worker.session.refusals import NO_ROOM, OVER_QUOTA, PAUSED
from server_worker.store import Store
from spliteasy.observability.meter import Meter, Metric
from spliteasy.runtime.torch_thread import Compute

T = TypeVar("T")

# The steps
STEPS = Metric("spliteasy_worker_steps_total", "counter", "Training steps committed.", ("training_job",))
REQUEST_SECONDS = Metric(
    "spliteasy_worker_request_seconds",
    "histogram",
    "Serving one request, until its replies leave.",
    ("kind",),
)
QUEUE_SECONDS = Metric(
    "spliteasy_worker_queue_seconds", "histogram", "A request's wait, from its last frame to being served."
)
COMPUTE_SECONDS = Metric(
    "spliteasy_worker_compute_seconds",
    "histogram",
    "One computation of the torch thread. Its sum grows by 1 a second where the thread never rests.",
)
COMPUTE_WAIT_SECONDS = Metric(
    "spliteasy_worker_compute_wait_seconds",
    "histogram",
    "A computation's wait for the torch thread, while those of other sessions run.",
)
REPLY_SECONDS = Metric(
    "spliteasy_worker_reply_seconds", "histogram", "Sending a reply, to the broker's last confirm.", ("kind",)
)
STORE_SECONDS = Metric("spliteasy_worker_store_seconds", "histogram", "One call of the store.", ("call",))
STORE_CALLS = Metric(
    "spliteasy_worker_store_calls_total",
    "counter",
    "Calls of the store by outcome: Done, a refusal (StaleOwner, StepBehind, …) or an error.",
    ("call", "outcome"),
)
REFUSED_COMMITS = Metric(
    "spliteasy_worker_refused_commits_total", "counter", "Commits that the store refused.", ("kind",)
)
# Going on after a fault
TAKEOVERS = Metric(
    "spliteasy_worker_takeovers_total",
    "counter",
    "Sessions loaded from the store: of another worker, after a restart, or parked before.",
)
REPLAYED = Metric("spliteasy_worker_replayed_steps_total", "counter", "Steps computed again from the log.")
HAVES = Metric(
    "spliteasy_worker_haves_total", "counter", "Times a device was told which frames are here already."
)
BUSY = Metric("spliteasy_worker_busy_total", "counter", "BUSY answers.", ("reason",))
ERRORS = Metric("spliteasy_worker_errors_total", "counter", "ERROR answers.", ("code",))
# The wire
BYTES = Metric(
    "spliteasy_worker_bytes_total",
    "counter",
    "Bytes of whole requests received, and of replies' frames sent.",
    ("direction", "codec"),
)
DEAD_LETTERS = Metric(
    "spliteasy_worker_dead_letters_total",
    "counter",
    "Deliveries that were not served: moved to the dead queue, or dropped.",
    ("reason",),
)
# Holdings and their limits
SESSIONS = Metric("spliteasy_worker_sessions", "gauge", "Sessions in memory.")
SESSION_BYTES = Metric(
    "spliteasy_worker_session_bytes",
    "gauge",
    "Torch memory of sessions: weights, buffers, optimizers, and the values of open steps as the graph says.",
)
SESSION_LIMIT = Metric(
    "spliteasy_worker_session_limit_bytes", "gauge", "Beyond this the least recently used are parked."
)
JOBS = Metric("spliteasy_worker_jobs", "gauge", "Job programs in memory.")
JOB_LIMIT = Metric("spliteasy_worker_job_limit", "gauge", "Job programs kept at most.")
WAITING = Metric("spliteasy_worker_waiting_requests", "gauge", "Whole requests that wait for their turn.")
WAITING_BYTES = Metric(
    "spliteasy_worker_waiting_bytes", "gauge", "Bytes of requests that wait for others of their step."
)
WAITING_LIMIT = Metric(
    "spliteasy_worker_waiting_limit_bytes", "gauge", "Beyond this such requests are answered BUSY."
)
LOG_BYTES = Metric(
    "spliteasy_worker_log_bytes", "gauge", "Bytes in the logs of the sessions in memory, in the store."
)
LOG_FILL = Metric(
    "spliteasy_worker_log_fill_ratio", "gauge", "The fullest log of a session in memory, of its limit."
)
SNAPSHOTS = Metric(
    "spliteasy_worker_snapshots", "gauge", "Snapshots that the store keeps of the sessions in memory."
)
ROWS_BYTES = Metric(
    "spliteasy_worker_rows_bytes", "gauge", "Bytes of activations that are kept for devices to name again."
)
ROWS_LIMIT = Metric(
    "spliteasy_worker_rows_limit_bytes", "gauge", "Beyond this no more are kept, and devices send them."
)
UPLOADS = Metric("spliteasy_worker_uploads", "gauge", "Unfinished uploads.")
UPLOAD_BYTES = Metric("spliteasy_worker_upload_bytes", "gauge", "Bytes reserved for unfinished uploads.")
UPLOAD_LIMIT = Metric(
    "spliteasy_worker_upload_limit_bytes", "gauge", "Beyond this new uploads are answered BUSY."
)
DEAD_WAITING = Metric(
    "spliteasy_worker_dead_queue_messages", "gauge", "Messages that lie in the broker's dead queue."
)

ALL = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """The holdings of a worker at a moment; the `limit`s are its settings."""

    sessions: int
    session_bytes: int
    jobs: int
    job_limit: int
    waiting: int
    log_bytes: int
    log_fill: float
    snapshots: int
    uploads: int
    upload_bytes: int
    rows_bytes: int


_BUSY = {PAUSED: "paused", NO_ROOM: "waiting", OVER_QUOTA: "quota"}


def count_answer(meter: Meter, reply: m.Reply | m.Receipt) -> None:
    """Count a session's answer where it is no success."""
    if isinstance(reply, m.Error):
        meter.add(ERRORS, 1, reply.code)
    elif isinstance(reply, m.Busy):
        meter.add(BUSY, 1, _BUSY.get(reply.reason, "not durable yet"))


def count_receipt(meter: Meter, receipt: m.Receipt) -> None:
    """Count what was said about a request's bytes."""
    if isinstance(receipt, m.Busy):
        meter.add(BUSY, 1, "uploads")
    elif isinstance(receipt, m.Have):
        meter.add(HAVES)


class MeteredCompute:
    """Times every call of a `Compute`: its wait for its turn, and the computation."""

    def __init__(self, compute: Compute, meter: Meter, clock: Callable[[], float]) -> None:
        self._compute = compute
        self._meter = meter
        self._clock = clock

    async def __call__(self, run: Callable[[], T]) -> T:
        asked, began = self._clock(), list[float]()

        def timed() -> T:
            began.append(self._clock())
            return run()

        try:
            return await self._compute(timed)
        finally:
            if began:  # else it was given up before its turn
                self._meter.observe(COMPUTE_WAIT_SECONDS, began[0] - asked)
                self._meter.observe(COMPUTE_SECONDS, self._clock() - began[0])


def metered_store(store: Store, meter: Meter, clock: Callable[[], float]) -> Store:
    """Return the same store, wrapped: the time and the outcome of every call go to the meter."""
    return cast(Store, _MeteredStore(store, meter, clock))


class _MeteredStore:
    def __init__(self, store: Store, meter: Meter, clock: Callable[[], float]) -> None:
        self._store = store
        self._meter = meter
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if not inspect.iscoroutinefunction(value):
            return value

        async def call(*args: Any, **kwargs: Any) -> Any:
            began, outcome = self._clock(), "cancelled"
            try:
                result = await value(*args, **kwargs)
                outcome = type(result).__name__ if type(result).__name__ in _OUTCOMES else "Done"
                return result
            except Exception as error:
                outcome = type(error).__name__
                raise
            finally:
                self._meter.observe(STORE_SECONDS, self._clock() - began, name)
                self._meter.add(STORE_CALLS, 1, name, outcome)
                if name == "commit" and outcome in _OUTCOMES:
                    self._meter.add(REFUSED_COMMITS, 1, outcome)

        return call


_OUTCOMES = frozenset(
    {"StaleAttempt", "StaleOwner", "StepBehind", "OtherJob", "NoCommonStep", "UnknownSession"}
)
