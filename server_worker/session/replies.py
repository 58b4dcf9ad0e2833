"""Replies that say yes, under the attempt and the fence of who computed. Those that say no: `refusals.py`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from broker.protocol import messages as m
from server_worker.replica.loaded_body import LoadedBody, MicroResult, StepResult
from server_worker.session.ownership import Ownership
from server_worker.session.reorder_buffer import Kind
from server_worker.store import SessionMeta
from spliteasy.codecs.packer import Packed


def opened(
    request: m.Open, meta: SessionMeta, *, durable_step: int, shard: int, newest: str | None = None
) -> m.Opened:
    """The attempt may begin, after the step that both sides can restore.

    `newest`: the digest of the version of the job that was submitted last.
    """
    return m.Opened(
        session=request.session,
        answers=request.request,
        attempt=request.attempt,
        fence=meta.owner.fence,
        step=meta.resume_step,
        durable_step=durable_step,
        newest=newest if newest != meta.job_digest else None,
        shard=shard,
    )


def forwarded(own: Ownership, memory: LoadedBody, request: m.Forward | m.Ask) -> m.Forwarded:
    """The body's outputs of an open micro-batch."""
    fields = {**_addressed(own, request), "answers": memory.forward_id(request.micro)}
    outputs = m.carried(memory.outputs(request.micro))
    return m.Forwarded(**fields, step=request.step, micro=request.micro, **outputs)


def missing(own: Ownership, request: m.SessionRequest, kind: Kind, micro: int) -> m.Missing:
    """The step needs a request that is not here."""
    return m.Missing(**_addressed(own, request), step=request.step, micro=micro or None, missing=kind)


def gradients(own: Ownership, step: int, result: StepResult) -> tuple[m.Gradient, ...]:
    """The replies of a committed step, by micro-batch."""
    durable_step = own.durable_step(step)
    return tuple(
        _gradient(own, step, micro, each, durable_step=durable_step, skipped=result.skipped)
        for micro, each in enumerate(result.micros)
    )


def early_gradient(own: Ownership, memory: LoadedBody, micro: int) -> m.Gradient:
    """Of a micro-batch of the open step, ahead of the commit.

    It promises nothing as durable: only a commit shows that the store has not gone back meanwhile.
    """
    return _gradient(own, memory.step + 1, micro, memory.result(micro), durable_step=0)


def evaluated(own: Ownership, memory: LoadedBody, request: m.Eval, outputs: Packed) -> m.Evaluated:
    """The body's outputs in evaluation mode."""
    return m.Evaluated(**_addressed(own, request), step=memory.step, **m.carried(outputs))


def body(own: Ownership, memory: LoadedBody, request: m.GetBody, tensors: dict[str, Tensor]) -> m.Body:
    """The body's weights and buffers after the last step."""
    return m.Body(
        **_addressed(own, request), step=memory.step, names=tuple(tensors), values=tuple(tensors.values())
    )


def closed(own: Ownership, memory: LoadedBody, request: m.Close) -> m.Closed:
    """The training has ended, and the store can't lose it."""
    return m.Closed(**_addressed(own, request), step=memory.step)


def _addressed(own: Ownership, request: m.SessionRequest) -> dict[str, Any]:
    """The fields that every reply within the attempt has."""
    return {
        "session": own.session,
        "answers": request.request,
        "attempt": request.attempt,
        "fence": own.live[1].fence,
    }


def _gradient(
    own: Ownership, step: int, micro: int, result: MicroResult, *, durable_step: int, skipped: bool = False
) -> m.Gradient:
    attempt, owner = own.live
    return m.Gradient(
        session=own.session,
        answers=result.answers,
        attempt=m.AttemptRef(number=attempt.number, nonce=attempt.nonce),
        fence=owner.fence,
        step=step,
        micro=micro or None,
        durable_step=durable_step,
        loss=result.loss,
        skipped=skipped,
        **m.carried(result.gradients),
        checkpoint=own.log_is_long,
    )
