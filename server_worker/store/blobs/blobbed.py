"""A store whose large values lie beside it as blobs: parts of jobs, and tensors of snapshots.

It lies over any store and changes neither its records nor its rules. The store has a pointer in the place of
such a value: the blob's name, size and digest. A blob is written, and synced, before the pointer is.

- Parts of jobs are named by their digest: versions of a job share what they have in common. They stay.
- Tensors of a snapshot are named by session, step and a token of the one call that wrote them, so that no
  other call ever counts on them.

A store may go back by its loss window, and then names again what it had let go. So `sweep` deletes a group of
blobs only once no record has named it for longer than that, each time that it looked. The same wait covers a
snapshot that is being written: its blobs are there before a record names them. A process that stood still in
between writes them again.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, TypeVar, cast

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from server_worker.store.base import (
    Attempt,
    Blob,
    CommitOutcome,
    Done,
    Owner,
    Store,
    StoredJob,
    WantedParts,
    all_parts,
)
from server_worker.store.blobs.folder import Blobs
from spliteasy.errors import BlobMissing

LARGE_BYTES = 4 << 20
"""Values from this size on are blobs."""

GRACE_S = 900.0
"""A group of blobs that no record names is deleted after so long, or twice the store's loss window."""

_POINTER = b"spliteasy-blob:"
"""Begins what stands in the store in the place of a blob."""

JOBS, SESSIONS = "jobs", "sessions"

_T = TypeVar("_T")


class _Pointer(BaseModel):
    """A blob as the store names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    version: Literal[1] = 1
    name: Annotated[str, StringConstraints(max_length=300)]
    size: Annotated[int, Field(ge=0, le=1 << 40)]
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

    def to_bytes(self) -> bytes:
        return _POINTER + orjson.dumps(self.model_dump())


class BlobbedStore:
    def __init__(
        self,
        store: Store,
        blobs: Blobs | None,
        *,
        large_bytes: int = LARGE_BYTES,
        grace_s: float = GRACE_S,
        ticks: Callable[[], float] = time.monotonic,
        inline: bool = False,
    ) -> None:
        """Without `blobs` nothing is written as one, and a pointer that is read raises BlobMissing.

        `inline`: blobs are written and read in the calling thread, as a simulation needs it.
        """
        self._store = store
        self._blobs = blobs
        self._large_bytes = large_bytes
        self._grace_s = grace_s
        self._ticks = ticks
        self._inline = inline
        self._unnamed: dict[str, float] = {}
        """When each group of blobs was first seen without a name, by the store's clock."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    # jobs

    async def put_job(self, job: StoredJob) -> None:
        blobs, parts = self._blobs, dict(job.parts)
        if blobs is not None:
            for part, value in job.parts.items():
                if self._is_large(value):
                    parts[part] = await self._aside(partial(_written, blobs, None, value))
        await self._store.put_job(replace(job, parts=parts))

    async def get_job(
        self, name: str, digest: str | None = None, *, wanted: WantedParts = all_parts
    ) -> StoredJob | None:
        found = await self._store.get_job(name, digest, wanted=wanted)
        if found is None:
            return None
        parts = {
            part: await self._resolved(value, f"job {name}@{found.digest[:12]}", f"its part {part}")
            for part, value in found.parts.items()
        }
        return replace(found, parts=parts)

    # snapshots

    async def put_snapshot(
        self, session: str, *, attempt: Attempt, owner: Owner, step: int, tensors: Mapping[str, Blob]
    ) -> CommitOutcome:
        blobs, kept = self._blobs, dict(tensors)
        began_s = self._ticks()
        group = f"{SESSIONS}/{session}/{step}-{secrets.token_hex(8)}"
        written: dict[str, Blob] = {}
        if blobs is not None:
            for name in sorted(name for name, value in tensors.items() if self._is_large(value)):
                blob = f"{group}/{len(written)}"
                written[blob] = tensors[name]
                kept[name] = await self._aside(partial(_written, blobs, blob, tensors[name]))
        outcome = await self._store.put_snapshot(
            session, attempt=attempt, owner=owner, step=step, tensors=kept
        )
        if blobs is not None:
            late = self._ticks() - began_s > self._grace_s / 2
            for name, value in written.items():
                if not isinstance(outcome, Done):  # no record will ever name it
                    await self._aside(partial(blobs.delete, name))
                elif late:  # a process that stood still: its blobs may have been swept before they had a name
                    await self._aside(partial(blobs.put, name, value))
        return outcome

    async def read_snapshot(self, session: str, step: int) -> dict[str, bytes]:
        found = await self._store.read_snapshot(session, step)
        return {
            name: await self._resolved(value, f"session {session}", f"tensor {name} of step {step}")
            for name, value in found.items()
        }

    async def sweep(self) -> int:
        """Delete blobs of snapshots that no record has named for long enough; how many groups went.

        Raises StoreError; what was deleted by then stays deleted.
        """
        blobs, swept = self._blobs, await self._store.sweep()
        if blobs is None:
            return swept
        grace_s = max(self._grace_s, 2 * self._store.loss_window_s)
        there: set[str] = set()
        for place in await self._aside(partial(blobs.children, SESSIONS)):
            groups = await self._aside(partial(blobs.children, place))
            there.update(groups)
            named = await self._named(place.removeprefix(f"{SESSIONS}/"))
            now = await self._store.now()
            for group in groups:
                if named is None or group in named:
                    self._unnamed.pop(group, None)
                elif now - self._unnamed.setdefault(group, now) > grace_s:
                    for each in await self._aside(partial(blobs.children, group)):
                        await self._aside(partial(blobs.delete, each))
                    del self._unnamed[group]
                    swept += 1
        for group in self._unnamed.keys() - there:
            del self._unnamed[group]
        return swept

    async def _named(self, session: str) -> set[str] | None:
        """Return the groups that the session's record names; None where it moved while this looked."""
        meta = await self._store.session(session)
        named: set[str] = set()
        for step in meta.stored if meta is not None else ():
            try:
                found = await self._store.read_snapshot(session, step)
            except KeyError:
                return None
            for value in found.values():
                if (pointer := _pointer_in(value)) is not None:
                    named.add(pointer.name.rpartition("/")[0])
        return named

    # values

    def _is_large(self, value: Blob) -> bool:
        view = memoryview(value).cast("B")
        # What looks like a pointer and is none would be taken for one.
        return view.nbytes >= self._large_bytes or bytes(view[: len(_POINTER)]) == _POINTER

    async def _resolved(self, value: bytes, whose: str, what: str) -> bytes:
        pointer = _pointer_in(value)
        if pointer is None:
            return value
        blobs = self._blobs
        if blobs is None:
            raise BlobMissing(
                f"{whose}: {what} lies beside the store as a blob, and this process knows no place of blobs",
                hint="name the workers' folder: --blobs DIR, or SPLITEASY_BLOBS=DIR",
            )
        try:
            found = await self._aside(partial(blobs.read, pointer.name))
        except KeyError:
            raise BlobMissing(
                f"{whose}: {what} is not among the blobs, though the store names {pointer.name}",
                hint="see whether all workers share one folder of blobs; restore it from a backup as old as "
                "the store's, or newer",
            ) from None
        if len(found) != pointer.size or await self._aside(partial(_digest, found)) != pointer.digest:
            raise BlobMissing(
                f"{whose}: {what} is damaged: the blob {pointer.name} is not what was written",
                hint="restore the blobs from a backup",
            )
        return found

    async def _aside(self, work: Callable[[], _T]) -> _T:
        """Do it in a thread: other sessions go on meanwhile."""
        return work() if self._inline else await asyncio.to_thread(work)


def blobbed(store: Store, blobs: Blobs | None) -> Store:
    """Wrap the store: its large values are blobs beside it. It owns `store`."""
    return cast(Store, BlobbedStore(store, blobs))


def _digest(value: Blob) -> str:
    return hashlib.sha256(value).hexdigest()


def _written(blobs: Blobs, name: str | None, value: Blob) -> bytes:
    """Write a blob, named by its digest where it has no other name, and return the pointer to it."""
    digest = _digest(value)
    full = f"{JOBS}/{digest}" if name is None else name
    blobs.put(full, value)
    return _Pointer(name=full, size=memoryview(value).nbytes, digest=digest).to_bytes()


def _pointer_in(value: bytes) -> _Pointer | None:
    if not value.startswith(_POINTER):
        return None
    try:
        return _Pointer.model_validate_json(value[len(_POINTER) :])
    except ValidationError:
        return None
