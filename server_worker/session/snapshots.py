"""When a session's snapshots are due, and how they are written; a takeover replays what comes after."""

from __future__ import annotations

from collections.abc import Callable

from server_worker.engine.local import BodyTrainer, encode_state
from server_worker.session.actions import Background, Compute, Result, Steps, StoreCall
from server_worker.store import Attempt, Done, Owner

LOG_BYTES = 16 << 20
"""A log up to this is not worth a snapshot."""


class Snapshots:
    """The snapshots of one session's body. What is written takes effect only under the right ownership."""

    def __init__(self, session: str, clock: Callable[[], float]) -> None:
        self.kept = 0
        """How many the store has, when the session was last loaded or committed."""
        self._session = session
        self._clock = clock
        self._step = 0
        self._logged_bytes = 0
        """Since that step."""
        self._written_at = clock()
        self._running = False

    def loaded(self, step: int, *, kept: int, logged_bytes: int) -> None:
        """The memory was built from the snapshot of `step`, one of `kept`, and the log."""
        self._wrote(step)
        self.kept, self._logged_bytes = kept, logged_bytes

    def committed(self, step_bytes: int, *, kept: int) -> None:
        """Another step is in the log; the store has so many snapshots."""
        self.kept = kept
        self._logged_bytes += step_bytes

    def are_cheap(self, state_bytes: int) -> bool:
        """Whether one more is little beside what was logged since the last one: a third of all, at most."""
        return not self._running and self._logged_bytes > max(LOG_BYTES, 2 * state_bytes)

    def covers(self, step: int) -> bool:
        """Whether there is one of `step`, or a newer one."""
        return step <= self._step

    def write_if_due(
        self, memory: BodyTrainer, ownership: tuple[Attempt, Owner], *, log_is_long: bool
    ) -> Steps:
        """Begin to write one beside what follows, after enough steps, time or log."""
        durability = memory.job.spec.durability
        due = (
            memory.step - self._step >= durability.snapshot_every_steps
            or self._clock() - self._written_at >= durability.snapshot_every_s
            or log_is_long
        )
        if not due or self._running:
            return
        step, (attempt, owner) = memory.step, ownership
        tensors = yield Compute(lambda: encode_state(memory.snapshot()))
        self._running = True
        self._wrote(step)

        def done(outcome: Result | None) -> None:
            self._running = False

        yield Background(
            lambda s: s.put_snapshot(self._session, attempt=attempt, owner=owner, step=step, tensors=tensors),
            done,
        )

    def write(self, memory: BodyTrainer, ownership: tuple[Attempt, Owner]) -> Steps:
        """Write one of the newest step, and wait for it; nothing where there is one."""
        if self.covers(memory.step):
            return
        attempt, owner = ownership
        tensors = yield Compute(lambda: encode_state(memory.snapshot()))
        outcome = yield StoreCall(
            lambda s: s.put_snapshot(
                self._session, attempt=attempt, owner=owner, step=memory.step, tensors=tensors
            )
        )
        if isinstance(outcome, Done):
            self._wrote(memory.step)

    def _wrote(self, step: int) -> None:
        self._step, self._logged_bytes, self._written_at = step, 0, self._clock()
