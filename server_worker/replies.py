"""Replies that say no, in words that tell a person what to do."""

from __future__ import annotations

from broker import messages as m
from server_worker.store import Attempt, NoCommonStep, OtherJob, StaleAttempt

NOT_DURABLE = "waiting until the last step is durable"
NO_ROOM = "too many requests wait for others that come before them"
PAUSED = "paused by the operator"
PAUSE_RETRY_S = 2.0


def paused_reply(request: m.SessionRequest) -> m.Busy:
    """No step begins until the operator lets the session go on; the device keeps what it has sent."""
    return m.Busy(answers=request.request, retry_after_s=PAUSE_RETRY_S, reason=PAUSED)


def error_reply(
    request: m.Request, code: m.ErrorCode, message: str, hint: str | None = None, *, retriable: bool = False
) -> m.Error:
    """A typed ERROR that answers the request; long texts are cut."""
    return m.Error(
        session=request.session,
        answers=request.request,
        code=code,
        message=message[:1500],
        hint=hint[:400] if hint else None,
        retriable=retriable,
    )


def not_allowed_reply(request: m.Request, digest: str = "") -> m.Error:
    """The operator lets the device train other jobs, or another version of this one."""
    version = f"version {digest[:12]} of job {request.job}" if digest else f"job {request.job}"
    return error_reply(
        request,
        "not-allowed",
        f"device {request.device} may not train {version}",
        f"the operator can allow it: spliteasy allow {request.device} {request.job}",
    )


def stale_reply(request: m.Open | m.SessionRequest, stored: Attempt) -> m.Superseded | m.Reopen:
    """The request's attempt is not the stored one: a newer one is, or the store went back to an older."""
    if stored.number < request.attempt.number:
        return reopen_reply(request, f"the store knows only attempt {stored.number}")
    return m.Superseded(
        session=request.session, answers=request.request, attempt=request.attempt, newest=stored.number
    )


def reopen_reply(request: m.Open | m.SessionRequest, reason: str) -> m.Reopen:
    """The session can't go on from the request's step."""
    return m.Reopen(session=request.session, answers=request.request, attempt=request.attempt, reason=reason)


def open_refused(request: m.Open, refusal: StaleAttempt | OtherJob | NoCommonStep) -> m.Reply:
    """Why an attempt can't begin."""
    match refusal:
        case StaleAttempt(stored=stored):
            return stale_reply(request, stored)
        case OtherJob(job_digest=digest):
            return error_reply(
                request,
                "other-job",
                f"session {request.session} trains {request.job}@{digest[:12]}, "
                f"the device asks for {request.job}@{request.digest[:12]}",
                "go on with the state folder of that version, or delete the session with "
                f"`spliteasy forget {request.session}`",
            )
        case NoCommonStep(oldest=oldest, committed=committed):
            server = "nothing" if oldest is None else f"steps {oldest} to {committed}"
            return error_reply(
                request,
                "no-common-step",
                f"no step that both sides can restore: the device holds {_told(request.held)}, "
                f"the store can restore {server}",
                "begin anew with `spliteasy agent --restart`",
            )


def _told(steps: tuple[int, ...]) -> str:
    return "checkpoints of steps " + ", ".join(str(step) for step in sorted(steps))
