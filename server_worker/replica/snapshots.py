"""When a replica's snapshots are due, and how they are written; a takeover replays what comes after."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from server_worker.action import Steps
from server_worker.replica.loaded_body import LoadedBody
from server_worker.store import Attempt, CommitOutcome, Done, Owner
from server_worker.store.calls import Begin, Finish, Handle, KeepSnapshot, PutSnapshot
from spliteasy.errors import StoreError

LOG_BYTES = 16 << 20
"""A log up to this is not worth a snapshot."""


@dataclass(frozen=True, slots=True)
class _Writing:
    """A snapshot that is being written."""

    step: int
    handle: Handle[CommitOutcome]


class Snapshots:
    """The snapshots of one replica's body. What is written takes effect only under the right ownership."""

    def __init__(self, replica: str, clock: Callable[[], float]) -> None:
        self.kept = 0
        """The number that the store had when the session was last loaded or committed."""
        self.best = 0
        """The number of those among them that were the best so far, each in its time."""
        self._replica = replica
        self._clock = clock
        self._covered = 0
        """The step of the newest one that the store is known to have."""
        self._step = 0
        """The step of the newest one that was tried."""
        self._logged_bytes = 0
        """Since that step."""
        self._written_at = clock()
        self._writing: _Writing | None = None

    def loaded(self, step: int, *, kept: int, best: int, logged_bytes: int) -> None:
        """The body was loaded from the snapshot of `step`, one of `kept`, and the log."""
        self._writing = None  # what an owner before this one began is no concern of this one
        self._covered = step
        self._tried(step)
        self.kept, self.best, self._logged_bytes = kept, best, logged_bytes

    def committed(self, step_bytes: int, *, kept: int, best: int) -> None:
        """Another step is in the log; the store has so many snapshots."""
        self.kept, self.best = kept, best
        self._logged_bytes += step_bytes

    def are_cheap(self, state_bytes: int) -> bool:
        """Return whether one more is small beside what was logged since the last one: a third at most."""
        return not self._is_writing and self._logged_bytes > max(LOG_BYTES, 2 * state_bytes)

    def covers(self, step: int) -> bool:
        """Return whether there is one of `step`, or a newer one."""
        return step <= self._covered

    def write_if_due(
        self, body: LoadedBody, ownership: tuple[Attempt, Owner], *, log_is_long: bool
    ) -> Steps[None]:
        """Begin to write one beside what follows, after enough steps, time or log."""
        durability = body.job.spec.durability
        due = (
            body.step - self._step >= durability.snapshot_every_steps
            or self._clock() - self._written_at >= durability.snapshot_every_s
            or log_is_long
        )
        if not due or self._is_writing:
            return
        yield from self._settle()
        step, (attempt, owner) = body.step, ownership
        tensors = yield from body.snapshot()
        self._tried(step)
        handle = yield from Begin(PutSnapshot(self._replica, attempt, owner, step, tensors))
        self._writing = _Writing(step, handle)

    def write(self, body: LoadedBody, ownership: tuple[Attempt, Owner]) -> Steps[None]:
        """Write one of the newest step, and wait for it; nothing where there is one."""
        yield from self._settle()
        if self.covers(body.step):
            return
        attempt, owner = ownership
        tensors = yield from body.snapshot()
        outcome = yield from PutSnapshot(self._replica, attempt, owner, body.step, tensors)
        if isinstance(outcome, Done):
            self._tried(body.step)
            self._covered = body.step

    def keep(self, body: LoadedBody, ownership: tuple[Attempt, Owner]) -> Steps[CommitOutcome]:
        """Write one of the newest step, unless there is one, and keep it until a better one is kept."""
        yield from self.write(body, ownership)
        attempt, owner = ownership
        outcome = yield from KeepSnapshot(self._replica, attempt, owner, body.step)
        if isinstance(outcome, Done):
            self.best = len(outcome.meta.best)
        return outcome

    @property
    def _is_writing(self) -> bool:
        return self._writing is not None and not self._writing.handle.done()

    def _settle(self) -> Steps[None]:
        """Wait for the snapshot that is being written, and remember whether it is there.

        One that failed costs a longer replay.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        with suppress(StoreError):
            outcome = yield from Finish(writing.handle)
            if isinstance(outcome, Done):
                self._covered = max(self._covered, writing.step)

    def _tried(self, step: int) -> None:
        self._step, self._logged_bytes, self._written_at = step, 0, self._clock()
