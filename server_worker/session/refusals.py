"""Replies that say no, in words that tell a person what to do. `replies.py` has those that say yes."""

from __future__ import annotations

from broker.protocol import messages as m
from server_worker.store import Attempt, NoCommonStep, OtherJob, SessionMeta, StaleAttempt
from spliteasy.errors import DataError, OutOfMemory, ReplayMismatch, StoreError, StoreFull
from spliteasy.training.segment_trainer import NotFinite

NOT_DURABLE = "waiting until the last step is durable"
CLOSE_RETRY_S = 0.5
NO_ROOM = "too many requests wait for others that come before them"
OVER_QUOTA = "the rows that this device names are more than its quota"
NO_MEMORY = "the steps of other sessions take the worker's memory"
MEMORY_RETRY_S = 1.0
PAUSED = "paused by the operator"
PAUSE_RETRY_S = 2.0
BEGIN_AGAIN = "begin the version again: --restart and another --state folder"


def paused_reply(request: m.SessionRequest) -> m.Busy:
    """No step begins until the operator lets the session go on; the device keeps what it has sent."""
    return m.Busy(answers=request.request, retry_after_s=PAUSE_RETRY_S, reason=PAUSED)


def over_quota_reply(request: m.Recall) -> m.Busy:
    """To put the named rows together costs a device as much as sending them."""
    return m.Busy(answers=request.request, retry_after_s=MEMORY_RETRY_S, reason=OVER_QUOTA)


def no_memory_reply(request: m.SessionRequest) -> m.Busy:
    """Others take the memory that the request would need; the device keeps what it has sent."""
    return m.Busy(answers=request.request, retry_after_s=MEMORY_RETRY_S, reason=NO_MEMORY)


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


def deadly_reply(request: m.Request) -> m.Error:
    """The request was begun again and again, and no worker that began it got to its end."""
    return error_reply(
        request,
        "computation-failed",
        "every worker that began this request ended before it was done",
        "it may need more memory than workers have: use a smaller batch, or more micro_batches; the operator "
        "finds the request in the dead queue",
    )


def failure_reply(request: m.Request, error: Exception, *, again: bool = False) -> m.Error:
    """Why a request could not be served. `again`: whether what found no memory may be tried once more."""
    match error:
        case DataError():
            return error_reply(request, "bad-tensor", error.message, error.hint)
        case NotFinite():
            return error_reply(
                request,
                "not-finite",
                "a gradient of the body is NaN or infinite",
                "lower the learning rate, or clip the gradients ([clip] max_norm)",
            )
        case ReplayMismatch():
            return error_reply(request, "replay-mismatch", error.message, error.hint)
        case StoreError():
            code: m.ErrorCode = "store-full" if isinstance(error, StoreFull) else "unavailable"
            return error_reply(request, code, error.message, error.hint, retriable=True)
        case OutOfMemory():
            code = "unavailable" if again else "computation-failed"
            text = f"the worker has {error.message}"
            return error_reply(request, code, text, error.hint, retriable=again)
    return error_reply(request, "computation-failed", f"{type(error).__name__}: {error}")


def unknown_job_reply(request: m.Open, digest: str) -> m.Error:
    """The store has no such version of a job."""
    return error_reply(
        request,
        "unknown-job",
        f"there is no job {request.job}@{digest[:12]}",
        "submit it with `spliteasy submit`",
    )


def log_full_reply(request: m.Forward | m.Ready, log_bytes: int, best: int) -> m.Error:
    """The log may not grow, nor the number of snapshots that are kept as the `best` so far, and the device
    keeps both from being cut."""
    return error_reply(
        request,
        "log-full",
        f"the log holds {log_bytes} bytes, and {best} states are kept as the best so far, since the device's "
        f"oldest checkpoint is step {request.oldest_checkpoint}",
        "submit the job with a larger durability.log_max_bytes, or with fewer checkpoints kept",
    )


def body_not_shared_reply(request: m.GetBody) -> m.Error:
    """The job keeps the body from the devices."""
    return error_reply(
        request,
        "not-allowed",
        f"job {request.job} does not let devices fetch the body",
        "submit it with `share_body = true`",
    )


def behind_reply(request: m.SessionRequest, committed: int) -> m.Error:
    """The request asks for a step that the body has left behind."""
    return error_reply(
        request,
        "no-common-step",
        f"{request.session} is at step {committed}, and this asks for step {request.step}",
        "let the device's agent go on for a moment, so that it writes a newer checkpoint, and ask again",
    )


def not_allowed_reply(request: m.Request, digest: str = "") -> m.Error:
    """The operator lets the device train other jobs, or another version of this one."""
    version = f"version {digest[:12]} of job {request.job}" if digest else f"job {request.job}"
    return error_reply(
        request,
        "not-allowed",
        f"device {request.device} may not train {version}",
        f"the operator can allow it: spliteasy device allow {request.device} {request.job}",
    )


def stale_reply(request: m.Open | m.SessionRequest, stored: Attempt) -> m.Superseded | m.Reopen:
    """The request's attempt is not the stored one: a newer one is, or the store went back to an older."""
    if stored.number < request.attempt.number:
        return reopen_reply(request, f"the store knows only attempt {stored.number}")
    return m.Superseded(
        session=request.session, answers=request.request, attempt=request.attempt, newest=stored.number
    )


def reopen_reply(request: m.Open | m.SessionRequest, reason: str, *, shard: int | None = None) -> m.Reopen:
    """The session can't go on from the request's step, or not by the shard that the request came by."""
    return m.Reopen(
        session=request.session, answers=request.request, attempt=request.attempt, reason=reason, shard=shard
    )


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
                "use the state folder of that version, with --new-version to go on from its weights; or "
                "begin again: --restart and another --state folder",
            )
        case NoCommonStep(oldest=oldest, committed=committed):
            server = "nothing" if oldest is None else f"steps {oldest} to {committed}"
            return error_reply(
                request,
                "no-common-step",
                f"no step that both sides can restore: the device holds {_told(request.held)}, "
                f"the store can restore {server}",
                "begin again with `spliteasy agent --restart`",
            )


def goes_on_from(request: m.Open, stored: SessionMeta | None) -> bool:
    """Return whether the store has the session under the version that the device went on from."""
    return (
        stored is not None
        and not request.restart
        and stored.job_digest == request.previous
        and stored.job_digest != request.digest
    )


def misfit_reply(request: m.Open, why: str) -> m.Error:
    """The body that was trained is not of the version's shapes."""
    return error_reply(
        request,
        "other-job",
        f"{request.job}@{request.digest[:12]} can't go on from the weights of "
        f"{request.job}@{(request.previous or '')[:12]}: {why}",
        BEGIN_AGAIN,
    )


def _told(steps: tuple[int, ...]) -> str:
    return "checkpoints of steps " + ", ".join(str(step) for step in sorted(steps))
