"""Job programs in a worker: loaded from the store once, kept while they are used; and the JOB reply."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress

import torch

from broker.protocol import messages as m
from broker.transport.topology import shard_of
from server_worker.admission.authorization import may_train
from server_worker.engine.base import Engine, LoadProgram
from server_worker.session.refusals import error_reply, not_allowed_reply
from server_worker.store import Store, StoredJob, no_parts
from spliteasy.errors import JobError, NeedsNewer
from spliteasy.job import Job, device_parts
from spliteasy.runtime.worker_defaults import REQUEST_TFLOP

CACHED_BYTES = 256 << 20
"""The devices' parts of jobs may fill this many bytes. The largest job is kept whatever its size."""


class JobCache:
    """Programs by digest, the least recently used dropped beyond `limit`."""

    def __init__(
        self, store: Store, engine: Engine, *, limit: int, request_tflop: float = REQUEST_TFLOP
    ) -> None:
        """`request_tflop`: the most computing that one request of a job may take."""
        self._store = store
        self._engine = engine
        self.limit = limit
        self._request_tflop = request_tflop
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._loading: dict[str, asyncio.Lock] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    async def get(self, name: str, digest: str) -> Job | None:
        """Return the program of that version; None where the store has none.

        Raises StoreError, PortableError, NeedsNewer, and JobError where a request of the job would take too
        much computing.
        """
        lock = self._loading.setdefault(digest, asyncio.Lock())
        try:
            async with lock:
                job = self._jobs.get(digest)
                if job is None:
                    stored = await self._store.get_job(name, digest)
                    if stored is None:
                        return None
                    job = await self._engine.perform(LoadProgram(stored.manifest, stored.parts))
                    self._jobs[digest] = job
                    while len(self._jobs) > self.limit:
                        self._jobs.popitem(last=False)
                self._jobs.move_to_end(digest)
                self._check_computing(job)
                return job
        finally:
            self._loading.pop(digest, None)  # digests come from devices: nothing stays of made up ones

    def _check_computing(self, job: Job) -> None:
        tflop = request_flops(job) / 1e12
        if tflop > self._request_tflop:
            raise JobError(
                f"one request of job {job} would take this worker {tflop:,.3g} TFLOP, over its limit of "
                f"{self._request_tflop:,.3g}",
                hint="use a smaller batch_size (or evaluation.batch_size) or more micro_batches in the job, "
                "or start the workers with a larger --request-tflop",
            )

    async def load_ahead(self, jobs: Iterable[str]) -> list[str]:
        """Load what is not here yet of `name@digest`s that may be needed; never in another's place.

        Returns what was loaded, without what needs a newer version. Raises as `get` does.
        """
        loaded = []
        for job in jobs:
            name, _, digest = job.partition("@")
            wanted = digest not in self._jobs and len(self._jobs) < self.limit
            with suppress(NeedsNewer):
                if wanted and await self.get(name, digest) is not None:
                    loaded.append(job)
        return loaded


def request_flops(job: Job) -> int:
    """Return the operations that the largest request of a job takes: a backward, about twice its forward, or
    an evaluation. Where labels are shared one request has forward, loss and backward."""
    costs, loss = job.body.program.costs, job.loss_costs.train_flops
    training = 3 * (costs.train_flops + loss) if job.spec.single else 2 * costs.train_flops
    return max(training, costs.eval_flops)


class DeviceJobs:
    """Answers GET_JOB. The devices' parts of jobs are read once, and kept up to `limit_bytes`, the least
    recently used dropped first: what an answer costs the store is about what the question costs the device.
    """

    def __init__(self, store: Store, *, shards: int, limit_bytes: int = CACHED_BYTES) -> None:
        self._store = store
        self._shards = shards
        self._limit_bytes = limit_bytes
        self._parts: OrderedDict[tuple[str, str], dict[str, torch.Tensor]] = OrderedDict()
        self._reading = asyncio.Lock()

    async def answer(self, request: m.GetJob) -> m.Job | m.Error:
        """The device's parts of the version asked for, and the shard that serves the session.

        Raises StoreError.
        """
        store = self._store
        allowed = (await store.allowed([request.device])).get(request.device)
        if not may_train(allowed, request.job):
            return not_allowed_reply(request)
        stored = await store.get_job(request.job, request.digest, wanted=no_parts)
        if stored is None:
            return await self._unknown(request)
        if not may_train(allowed, request.job, stored.digest):
            return not_allowed_reply(request, stored.digest)
        parts: Mapping[str, torch.Tensor] = {}
        if not request.without_parts:
            async with self._reading:  # many devices ask at once for one new job
                parts = await self._parts_of(stored)
        return m.Job(
            session=request.session,
            answers=request.request,
            digest=stored.digest,
            shard=shard_of(request.session, self._shards),
            manifest=stored.manifest.decode(),
            parts=tuple(parts),
            signature=stored.signature,
            values=tuple(parts.values()),
        )

    async def _parts_of(self, stored: StoredJob) -> dict[str, torch.Tensor]:
        key = (stored.name, stored.digest)
        parts = self._parts.get(key)
        if parts is None:
            found = await self._store.get_job(stored.name, stored.digest, wanted=device_parts)
            read = {} if found is None else found.parts
            parts = {
                name: torch.frombuffer(bytearray(read[name]), dtype=torch.uint8) for name in sorted(read)
            }
            self._parts[key] = parts
        self._parts.move_to_end(key)
        while len(self._parts) > 1 and sum(map(_nbytes, self._parts.values())) > self._limit_bytes:
            self._parts.popitem(last=False)
        return parts

    async def _unknown(self, request: m.GetJob) -> m.Error:
        known = sorted(await self._store.job_versions())
        version = f"{request.job}@{request.digest[:12]}" if request.digest else request.job
        listed = f"submitted are: {', '.join(known[:20])}" if known else "no job has been submitted"
        return error_reply(
            request, "unknown-job", f"there is no job {version}", f"{listed}; see `spliteasy submit`"
        )


def _nbytes(parts: dict[str, torch.Tensor]) -> int:
    return sum(part.nbytes for part in parts.values())
