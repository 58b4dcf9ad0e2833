"""Calls of the store, as records: what the machines of sessions and replicas ask of it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from server_worker.action import Action
from server_worker.store.base import (
    Attempt,
    Blob,
    ClaimOutcome,
    CommitOutcome,
    LogEntry,
    OpenOutcome,
    Owner,
    SessionMeta,
    Store,
)
from server_worker.store.log_reader import read_entries, read_snapshot

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class StoreAction(Action[R]):
    """A call of the store, whose result is the outcome. It goes on to its end even if nobody waits for it."""

    __slots__ = ()

    async def call(self, store: Store) -> R:
        """Make the call. Raises StoreError, as the store does."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class ReadSession(StoreAction[SessionMeta | None]):
    """The session's record; None where there is none."""

    session: str

    async def call(self, store: Store) -> SessionMeta | None:
        return await store.session(self.session)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSession(StoreAction[OpenOutcome]):
    """Begin an attempt at the newest step that both sides can restore."""

    session: str
    job_digest: str
    attempt: Attempt
    held: tuple[int, ...]
    """The steps that the device has checkpoints of."""
    worker: str
    """The owner nonce of the worker that asks."""
    environment: str
    agent: str
    total_steps: int
    restart: bool

    async def call(self, store: Store) -> OpenOutcome:
        return await store.open_session(
            self.session,
            job_digest=self.job_digest,
            attempt=self.attempt,
            held=self.held,
            worker=self.worker,
            environment=self.environment,
            agent=self.agent,
            total_steps=self.total_steps,
            restart=self.restart,
        )


@dataclass(frozen=True, slots=True)
class ClaimSession(StoreAction[ClaimOutcome]):
    """Become the owner, to serve a request of `step`."""

    session: str
    attempt: Attempt
    step: int
    worker: str

    async def call(self, store: Store) -> ClaimOutcome:
        return await store.claim(self.session, attempt=self.attempt, step=self.step, worker=self.worker)


@dataclass(frozen=True, slots=True)
class PutRequest(StoreAction[None]):
    """Write a request's bytes to the log, ahead of the commit that names them."""

    session: str
    attempt: Attempt
    owner: Owner
    step: int
    index: int
    body: Blob

    async def call(self, store: Store) -> None:
        await store.put_request(
            self.session,
            attempt=self.attempt,
            owner=self.owner,
            step=self.step,
            index=self.index,
            body=self.body,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitStep(StoreAction[CommitOutcome]):
    """Make the step that the body has taken, and whose requests were put."""

    session: str
    attempt: Attempt
    owner: Owner
    step: int
    requests: int
    """The number of requests that were put for it."""
    digest: str
    oldest_checkpoint: int
    """The device's oldest checkpoint, when the step began."""

    async def call(self, store: Store) -> CommitOutcome:
        return await store.commit(
            self.session,
            attempt=self.attempt,
            owner=self.owner,
            step=self.step,
            requests=self.requests,
            gradient_digest=self.digest,
            oldest_checkpoint=self.oldest_checkpoint,
        )


@dataclass(frozen=True, slots=True)
class PutSnapshot(StoreAction[CommitOutcome]):
    """Keep the state after `step`."""

    session: str
    attempt: Attempt
    owner: Owner
    step: int
    tensors: Mapping[str, Blob]

    async def call(self, store: Store) -> CommitOutcome:
        return await store.put_snapshot(
            self.session, attempt=self.attempt, owner=self.owner, step=self.step, tensors=self.tensors
        )


@dataclass(frozen=True, slots=True)
class KeepSnapshot(StoreAction[CommitOutcome]):
    """Keep the snapshot of `step` until a better one takes its place."""

    session: str
    attempt: Attempt
    owner: Owner
    step: int

    async def call(self, store: Store) -> CommitOutcome:
        return await store.keep_snapshot(self.session, attempt=self.attempt, owner=self.owner, step=self.step)


@dataclass(frozen=True, slots=True)
class CloseSession(StoreAction[CommitOutcome]):
    """Mark the training as finished."""

    session: str
    attempt: Attempt
    owner: Owner

    async def call(self, store: Store) -> CommitOutcome:
        return await store.close_session(self.session, attempt=self.attempt, owner=self.owner)


@dataclass(frozen=True, slots=True)
class HandOver(StoreAction[CommitOutcome]):
    """Let another version of the job go on from the committed step."""

    session: str
    attempt: Attempt
    owner: Owner
    job_digest: str
    environment: str

    async def call(self, store: Store) -> CommitOutcome:
        return await store.hand_over(
            self.session,
            attempt=self.attempt,
            owner=self.owner,
            job_digest=self.job_digest,
            environment=self.environment,
        )


@dataclass(frozen=True, slots=True)
class ReadSnapshot(StoreAction[dict[str, bytes]]):
    """The blobs of the snapshot of `step`. Raises StoreUnavailable where it has just gone."""

    session: str
    step: int

    async def call(self, store: Store) -> dict[str, bytes]:
        return await read_snapshot(store, self.session, self.step)


@dataclass(frozen=True, slots=True)
class ReadEntries(StoreAction[list[LogEntry]]):
    """The log's next entries after `after`, a batch of those up to `upto`; at least one.

    Raises StoreUnavailable where one has just gone.
    """

    session: str
    after: int
    upto: int

    async def call(self, store: Store) -> list[LogEntry]:
        return await read_entries(store, self.session, after=self.after, upto=self.upto)


@dataclass(frozen=True, slots=True)
class ReadAllowed(StoreAction[tuple[str, ...] | None]):
    """The jobs that the device may train; None: any."""

    device: str

    async def call(self, store: Store) -> tuple[str, ...] | None:
        return (await store.allowed([self.device])).get(self.device)


@dataclass(frozen=True, slots=True)
class ReadNewestVersion(StoreAction[str | None]):
    """The digest of the job's version that was submitted last."""

    job: str

    async def call(self, store: Store) -> str | None:
        return next(iter((await store.job_versions()).get(self.job, ())), None)


class Handle(Protocol[R_co]):
    """A store call under way, or over."""

    def done(self) -> bool:
        """Return whether it is over, so that waiting for it takes no time."""
        ...

    def __await__(self) -> Generator[Any, Any, R_co]: ...


@dataclass(frozen=True, slots=True)
class Begin(Action[Handle[R]]):
    """Begin a store call beside what follows. It goes on to its end even if nobody finishes it."""

    call: StoreAction[R]


@dataclass(frozen=True, slots=True)
class Finish(Action[R]):
    """Wait for a call that was begun; the result is its outcome."""

    handle: Handle[R]
