"""An attempt begins on a worker: it is opened, loaded, and handed over to another version of the job."""

from __future__ import annotations

from collections.abc import Callable

from broker.protocol import messages as m
from server_worker.action import Steps
from server_worker.engine.base import Probe
from server_worker.engine.frozen import other_base
from server_worker.replica.actions import LoadJob
from server_worker.replica.replica import Replica
from server_worker.session.actions import Send
from server_worker.session.refusals import (
    CLOSE_RETRY_S,
    NOT_DURABLE,
    goes_on_from,
    misfit_reply,
    open_refused,
    unknown_job_reply,
)
from server_worker.session.replies import opened
from server_worker.store import Attempt, CommitOutcome, Done, SessionMeta
from server_worker.store.calls import HandOver, OpenSession, ReadNewestVersion, ReadSession
from spliteasy.job import Job
from spliteasy.training.segment_trainer import misfit


class Opening:
    """Serves OPEN, for one session."""

    def __init__(
        self,
        session: str,
        replica: Replica,
        *,
        shard: int,
        accept: Callable[[SessionMeta], None],
        load: Callable[[SessionMeta], Steps[None]],
        drop: Callable[[], None],
    ) -> None:
        """`accept` goes on under the record's attempt and owner, `load` loads the replica's body from the
        store, `drop` throws it away.
        """
        self._session = session
        self._replica = replica
        self._shard = shard
        self._accept = accept
        self._load = load
        self._drop = drop

    def open(self, request: m.Open, job: Job) -> Steps[None]:
        """Begin the attempt with that version of the job, and say so."""
        environment = yield from Probe(job)
        stored = yield from ReadSession(self._session)
        if stored is not None and stored.job_digest == request.digest and not request.restart:
            yield from self._replica.check_environment(stored)
        if goes_on_from(request, stored) and not (yield from self._hand_over(request, job, environment)):
            return
        meta = yield from self._opened(request, request.digest, environment)
        if meta is None:
            return
        # A late copy of OPEN must not make us forget the commits since.
        durable_step = min(meta.resume_step, self._replica.durable_step(meta.committed))
        newest = yield from ReadNewestVersion(request.job)
        yield from Send(opened(request, meta, durable_step=durable_step, shard=self._shard, newest=newest))

    def _opened(self, request: m.Open, digest: str, environment: str) -> Steps[SessionMeta | None]:
        """Begin the attempt in the store, under that version of the job, and load it. None: refused."""
        outcome = yield from OpenSession(
            session=self._session,
            job_digest=digest,
            attempt=attempt_of(request.attempt),
            held=request.held,
            worker=self._replica.identity.nonce,
            environment=environment,
            agent=request.agent or "",
            total_steps=request.total_steps or 0,
            restart=request.restart,
        )
        if not isinstance(outcome, Done):
            yield from Send(open_refused(request, outcome))
            return None
        self._accept(outcome.meta)
        if self._replica.body is None:
            # Before the answer: what can't be loaded is refused, not opened and then refused.
            yield from self._load(outcome.meta)
        return outcome.meta

    def _hand_over(self, request: m.Open, job: Job, environment: str) -> Steps[bool]:
        """Let the version that the device asks for go on from what another has trained; whether it does.

        The step is opened under the version that trained it, kept in a snapshot, and handed over once the
        store can't lose it: were it to go back later, no step of the new version could meet one of the old.
        """
        assert request.previous is not None
        before = yield from LoadJob(request.job, request.previous)
        if before is None:
            yield from Send(unknown_job_reply(request, request.previous))
            return False
        meta = yield from self._opened(request, request.previous, (yield from Probe(before)))
        body, attempt = self._replica.body, attempt_of(request.attempt)
        if meta is None or body is None:
            return False
        why = misfit(job.body.state_dict(), before.body.state_dict()) or other_base(job.body, before.body)
        if why is not None:
            yield from Send(misfit_reply(request, why))
            return False
        yield from self._replica.save(attempt)
        outcome: CommitOutcome | None = None
        if self._replica.durable_step(body.step) == body.step:
            outcome = yield from HandOver(
                self._session, attempt, self._replica.live_owner, job.digest, environment
            )
            self._drop()
        if isinstance(outcome, Done):
            return True
        yield from Send(m.Busy(answers=request.request, retry_after_s=CLOSE_RETRY_S, reason=NOT_DURABLE))
        return False


def attempt_of(ref: m.AttemptRef) -> Attempt:
    """The attempt that a message names, as the store knows it."""
    return Attempt(number=ref.number, nonce=ref.nonce)
