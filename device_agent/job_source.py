"""An agent's job: from its state folder, or from a worker over the link."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from broker.protocol import messages as m
from device_agent.config import AgentConfig
from device_agent.link.link import Link
from device_agent.session import events as e
from device_agent.state_folder import StateFolder
from spliteasy.errors import JobError, RemoteError, StateError
from spliteasy.job import Job
from spliteasy.job.package import job_digest
from spliteasy.job.signing import check_signature
from spliteasy.runtime.torch_thread import Compute

GET_JOB_TIMEOUT_S = 10.0


_LOADED: dict[str, Job] = {}
"""The job that this process loaded last, by the digest of all its bytes: its devices share it."""


def load_job(manifest: bytes, parts: Mapping[str, bytes]) -> Job:
    """Return the job of a package. Raises as `Job.from_parts` does."""
    hasher = hashlib.sha256(manifest)
    for name in sorted(parts):
        hasher.update(f"{name} {len(parts[name])} ".encode())
        hasher.update(parts[name])
    key = hasher.hexdigest()
    job = _LOADED.get(key)
    if job is None:
        job = Job.from_parts(manifest, parts)
        _LOADED.clear()
        _LOADED[key] = job
    return job


@dataclass(frozen=True, slots=True)
class FetchedJob:
    """A job, and the package that it was read from."""

    job: Job
    manifest: bytes
    parts: Mapping[str, bytes]
    signature: str | None = None
    shard: int | None = None
    """The shard that serves the session, as a worker tells."""

    def save(self, state: StateFolder) -> None:
        """Keep the package in the folder, in place of what is there."""
        state.save_job(self.manifest, self.parts)
        if self.signature is not None:
            state.save_signature(self.signature)


class JobSource:
    """Gets the job's device parts and the session's shard. Until then it takes the link's events."""

    def __init__(
        self,
        config: AgentConfig,
        session: str,
        *,
        link: Link,
        events: asyncio.Queue[e.Event],
        compute: Compute,
        tell: Callable[[str], None],
    ) -> None:
        """`tell` gets what a person should know while it takes long."""
        self._config = config
        self._session = session
        self._name, _, self._digest = config.job.partition("@")
        self._link = link
        self._events = events
        self._compute = compute
        self._tell = tell

    async def get(self, state: StateFolder) -> FetchedJob | None:
        """Return the job's device parts, from the state folder where it has them, and the session's shard.

        Where a key is to have signed the job, nothing of an unsigned or altered one is loaded: one that is
        in the folder without its signature is fetched again. A version that is to go on from the folder's
        weights is not kept there yet. None where it was stopped before it came.
        """
        key, bound = self._config.operator_key, state.binding and state.binding.job
        stored = await self._compute(state.job_parts)
        if stored is not None and bound not in (None, job_digest(stored[0])):
            stored = None  # of the version before, which another had gone on from when the agent ended
        digest = bound or (job_digest(stored[0]) if stored is not None else self._digest)
        own: FetchedJob | None = None
        if stored is not None and (key is None or _vouched(stored[0], state.job_signature, key)):
            own = FetchedJob(await self._compute(lambda: load_job(*stored)), *stored)
        if bound is not None and self._config.new_version:
            self._check_name(own)
            digest = self._digest
        elif own is not None:
            self._check_version(own.job)
            told = await self._fetch(own.job.digest, without_parts=True)
            return None if told is None else replace(own, shard=told.shard)
        reply = await self._fetch(digest)
        if reply is None:
            return None
        manifest, signature = reply.manifest.encode(), reply.signature
        if key is not None:
            check_signature(manifest, signature, key)
        parts = {name: _part_bytes(value) for name, value in zip(reply.parts, reply.values, strict=True)}
        fetched = FetchedJob(
            await self._compute(lambda: load_job(manifest, parts)),
            manifest,
            parts,
            signature,
            shard=reply.shard,
        )
        self._check_version(fetched.job)
        if bound in (None, fetched.job.digest):
            await self._compute(lambda: fetched.save(state))
        return fetched

    def _check_name(self, own: FetchedJob | None) -> None:
        """Only versions of one job go on from each other."""
        if own is not None and own.job.name != self._name:
            raise StateError(
                f"{self._config.state} belongs to job {own.job.name}, not {self._name}",
                hint="--new-version goes on with another version of the same job",
            )

    def _check_version(self, job: Job) -> None:
        if job.name != self._name or not job.digest.startswith(self._digest):
            raise StateError(
                f"{self._config.state} belongs to job {job.name}@{job.digest[:12]}, not {self._config.job}",
                hint="go on from the trained weights with --new-version; or give this version a state folder "
                "of its own with --state DIR"
                if job.name == self._name
                else "give this job a state folder of its own with --state DIR",
            )

    async def _fetch(self, digest: str, *, without_parts: bool = False) -> m.Job | None:
        """That version, or where `digest` is empty the newest; None where it was stopped meanwhile."""
        if digest and len(digest) != 64:
            raise JobError(f"{self._config.job}: a version is 64 hexadecimal digits", hint="or leave it out")
        request = m.GetJob(session=self._session, digest=digest or None, without_parts=without_parts)
        up = False
        while True:
            try:
                async with asyncio.timeout(GET_JOB_TIMEOUT_S if up else None):
                    event = await self._events.get()
            except TimeoutError:
                self._tell("no answer yet: is a worker running?")
                self._link.send(request)
                continue
            match event:
                case e.LinkUp():
                    up = True
                    self._link.send(request)
                case e.LinkDown():
                    up = False
                case e.Failed(error=error):
                    raise error
                case e.NotSent():
                    self._tell("waiting for a worker to serve this broker")
                    asyncio.get_running_loop().call_later(1.0, self._link.send, request)
                case e.StopAsked():
                    return None
                case e.Received(message=m.Job() as reply) if reply.answers == request.request:
                    return reply
                case e.Received(message=m.Error() as error) if error.answers == request.request:
                    if not error.retriable:
                        raise RemoteError(error.message, code=error.code, hint=error.hint)
                    asyncio.get_running_loop().call_later(1.0, self._link.send, request)


def _vouched(manifest: bytes, signature: str | None, key: str) -> bool:
    """Return whether the key signed what is in the folder."""
    try:
        check_signature(manifest, signature, key)
    except JobError:
        return False
    return True


def _part_bytes(value: m.Value) -> bytes:
    if not isinstance(value, Tensor) or value.dtype != torch.uint8 or value.dim() != 1:
        raise RemoteError("a part of the job is not a row of bytes", code="bad-tensor")
    return value.numpy().tobytes()
