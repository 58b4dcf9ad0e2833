"""Job programs in a worker: loaded from the store once, kept while they are used; and the JOB reply."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress

import torch

from broker import messages as m
from broker.topology import shard_of
from server_worker.allowing import may_train
from server_worker.refusals import error_reply, not_allowed_reply
from server_worker.store import Store
from spliteasy.compute import Compute
from spliteasy.errors import NeedsNewer
from spliteasy.job import Job, device_parts


class JobCache:
    """Programs by digest, the least recently used dropped beyond `limit`."""

    def __init__(self, store: Store, compute: Compute, *, limit: int) -> None:
        self._store = store
        self._compute = compute
        self.limit = limit
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._loading: dict[str, asyncio.Lock] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    async def get(self, name: str, digest: str) -> Job | None:
        """The program of that version; None where the store has none.

        Raises StoreError, PortableError, NeedsNewer.
        """
        lock = self._loading.setdefault(digest, asyncio.Lock())
        try:
            async with lock:
                job = self._jobs.get(digest)
                if job is None:
                    stored = await self._store.get_job(name, digest)
                    if stored is None:
                        return None
                    job = await self._compute(lambda: Job.from_parts(stored.manifest, stored.parts))
                    self._jobs[digest] = job
                    while len(self._jobs) > self.limit:
                        self._jobs.popitem(last=False)
                self._jobs.move_to_end(digest)
                return job
        finally:
            self._loading.pop(digest, None)  # digests come from devices: nothing stays of made up ones

    async def load_ahead(self, jobs: Iterable[str]) -> list[str]:
        """Load what is not here yet of `name@digest`s that may be needed; never in another's place.

        Returns what was loaded, without what needs a newer version. Raises StoreError, PortableError.
        """
        loaded = []
        for job in jobs:
            name, _, digest = job.partition("@")
            wanted = digest not in self._jobs and len(self._jobs) < self.limit
            with suppress(NeedsNewer):
                if wanted and await self.get(name, digest) is not None:
                    loaded.append(job)
        return loaded


async def answer_get_job(request: m.GetJob, store: Store, *, shards: int) -> m.Job | m.Error:
    """The device's parts of the version asked for, and the shard that serves the session."""
    allowed = (await store.allowed([request.device])).get(request.device)
    if not may_train(allowed, request.job):
        return not_allowed_reply(request)
    stored = await store.get_job(request.job, request.digest)
    if stored is None:
        known = sorted(await store.job_versions())
        version = f"{request.job}@{request.digest[:12]}" if request.digest else request.job
        listed = f"submitted are: {', '.join(known[:20])}" if known else "no job has been submitted"
        return error_reply(
            request, "unknown-job", f"there is no job {version}", f"{listed}; see `spliteasy submit`"
        )
    if not may_train(allowed, request.job, stored.digest):
        return not_allowed_reply(request, stored.digest)
    names = device_parts(stored.parts)
    return m.Job(
        session=request.session,
        answers=request.request,
        digest=stored.digest,
        shard=shard_of(request.session, shards),
        manifest=stored.manifest.decode(),
        parts=names,
        signature=stored.signature,
        values=tuple(torch.frombuffer(bytearray(stored.parts[name]), dtype=torch.uint8) for name in names),
    )
