"""How an attempt begins on a worker: opened, loaded, and handed over to another version of the job."""

from __future__ import annotations

from collections.abc import Callable, Generator

from broker.protocol import messages as m
from server_worker.engine.probe import environment_of
from server_worker.session import replies
from server_worker.session.actions import Action, Compute, LoadJob, Result, Send, Steps, StoreCall
from server_worker.session.ownership import Ownership, attempt_of
from server_worker.session.refusals import (
    CLOSE_RETRY_S,
    NOT_DURABLE,
    goes_on_from,
    misfit_reply,
    open_refused,
    unknown_job_reply,
)
from server_worker.store import CommitOutcome, Done, SessionMeta
from spliteasy.job import Job
from spliteasy.training.segment_trainer import misfit


class Opening:
    """Serves OPEN, for one session."""

    def __init__(
        self, own: Ownership, *, load: Callable[[SessionMeta], Steps], drop: Callable[[], None]
    ) -> None:
        """`load` builds the session's memory from the store, `drop` throws it away."""
        self._own = own
        self._load = load
        self._drop = drop

    def open(self, request: m.Open, job: Job) -> Steps:
        """Begin the attempt with that version of the job, and say so."""
        environment = yield Compute(lambda: environment_of(job))
        stored = yield StoreCall(lambda s: s.session(self._own.session))
        if stored is not None and stored.job_digest == request.digest and not request.restart:
            yield from self._own.check_environment(stored)
        if goes_on_from(request, stored) and not (yield from self._hand_over(request, job, environment)):
            return
        meta = yield from self._opened(request, request.digest, environment)
        if meta is None:
            return
        # A late copy of OPEN must not make us forget the commits since.
        durable_step = min(meta.resume_step, self._own.durable_step(meta.committed))
        versions = yield StoreCall(lambda s: s.job_versions())
        newest = next(iter(versions.get(request.job, ())), None)
        yield Send(replies.opened(request, meta, durable_step=durable_step, newest=newest))

    def _opened(
        self, request: m.Open, digest: str, environment: str
    ) -> Generator[Action, Result, SessionMeta | None]:
        """Begin the attempt in the store, under that version of the job, and load it. None: refused."""
        outcome = yield StoreCall(
            lambda s: s.open_session(
                self._own.session,
                job_digest=digest,
                attempt=attempt_of(request.attempt),
                held=request.held,
                worker=self._own.identity.nonce,
                environment=environment,
                agent=request.agent or "",
                total_steps=request.total_steps or 0,
                restart=request.restart,
            )
        )
        if not isinstance(outcome, Done):
            yield Send(open_refused(request, outcome))
            return None
        meta: SessionMeta = outcome.meta
        if not self._own.is_under(meta):
            self._drop()
        self._own.accept(meta)
        if self._own.memory is None:
            # Before the answer: what can't be loaded is refused, not opened and then refused.
            yield from self._load(meta)
        return meta

    def _hand_over(self, request: m.Open, job: Job, environment: str) -> Generator[Action, Result, bool]:
        """Let the version that the device asks for go on from what another has trained; whether it does.

        The step is opened under the version that trained it, kept in a snapshot, and handed over once the
        store can't lose it: were it to go back later, no step of the new version could meet one of the old.
        """
        assert request.previous is not None
        before = yield LoadJob(request.job, request.previous)
        if before is None:
            yield Send(unknown_job_reply(request, request.previous))
            return False
        meta = yield from self._opened(
            request, request.previous, (yield Compute(lambda: environment_of(before)))
        )
        memory = self._own.memory
        if meta is None or memory is None:
            return False
        if (why := misfit(job.body.state_dict(), memory.trainer.segment.state_dict())) is not None:
            yield Send(misfit_reply(request, why))
            return False
        yield from self._own.save()
        outcome: CommitOutcome | None = None
        if self._own.durable_step(memory.step) == memory.step:
            attempt, owner = self._own.live
            outcome = yield StoreCall(
                lambda s: s.hand_over(
                    self._own.session,
                    attempt=attempt,
                    owner=owner,
                    job_digest=job.digest,
                    environment=environment,
                )
            )
            self._drop()
        if isinstance(outcome, Done):
            return True
        yield Send(m.Busy(answers=request.request, retry_after_s=CLOSE_RETRY_S, reason=NOT_DURABLE))
        return False
