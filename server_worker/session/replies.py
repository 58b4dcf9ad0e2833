"""Replies that say yes, under the attempt and the fence of who computed. Those that say no: `refusals.py`."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from broker.protocol import messages as m
from server_worker.replica.loaded_body import LoadedBody, MicroResult, RoundMean, StepResult
from server_worker.replica.replica import Replica
from server_worker.session.reorder_buffer import Kind
from server_worker.store import Attempt, SessionMeta
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


class Replies:
    """The replies to one session, of the attempt that is open and under the owner of its replica."""

    def __init__(self, session: str, attempt: Attempt, replica: Replica) -> None:
        self._replica = replica
        self._addressed: dict[str, Any] = {
            "session": session,
            "attempt": m.AttemptRef(number=attempt.number, nonce=attempt.nonce),
            "fence": replica.live_owner.fence,
        }

    def forwarded(self, body: LoadedBody, request: m.Forward | m.Recall | m.Ask) -> m.Forwarded:
        """The body's outputs of an open micro-batch."""
        return m.Forwarded(
            **self._addressed,
            answers=body.forward_id(request.micro) or request.request,
            step=request.step,
            micro=request.micro,
            kept=body.kept(request.micro),
            **m.carried(body.outputs(request.micro)),
        )

    def missing(
        self,
        request: m.SessionRequest,
        kind: Kind | Literal["READY"],
        micro: int,
        rows: m.Ranges | None = None,
    ) -> m.Missing:
        """The step needs a request that is not here. `rows`: those that a RECALL names in vain."""
        return m.Missing(
            **self._addressed,
            answers=request.request,
            step=request.step,
            micro=micro or None,
            missing=kind,
            rows=rows,
        )

    def of_step(self, step: int, result: StepResult) -> tuple[m.Gradient | m.Mean, ...]:
        """Return the replies of a committed step, by micro-batch; or the one with its mean."""
        durable_step = self._replica.durable_step(step)
        if result.mean is not None:
            return (self._mean(step, result.mean, durable_step=durable_step),)
        return tuple(
            self._gradient(step, micro, each, durable_step=durable_step, skipped=result.skipped)
            for micro, each in enumerate(result.micros)
        )

    def early_gradient(self, body: LoadedBody, micro: int) -> m.Gradient:
        """Return the gradient of a micro-batch of the open step, ahead of the commit.

        It promises nothing as durable: only a commit shows that the store has not gone back meanwhile.
        """
        return self._gradient(body.step + 1, micro, body.result(micro), durable_step=0)

    def evaluated(self, body: LoadedBody, request: m.Eval, outputs: Packed) -> m.Evaluated:
        """The body's outputs in evaluation mode."""
        return m.Evaluated(**self._addressed, answers=request.request, step=body.step, **m.carried(outputs))

    def body(self, body: LoadedBody, request: m.GetBody, tensors: dict[str, Tensor]) -> m.Body:
        """The body's weights and buffers after the last step."""
        return m.Body(
            **self._addressed,
            answers=request.request,
            step=body.step,
            names=tuple(tensors),
            values=tuple(tensors.values()),
        )

    def closed(self, body: LoadedBody, request: m.Close) -> m.Closed:
        """The training has ended, and the store can't lose it."""
        return m.Closed(**self._addressed, answers=request.request, step=body.step)

    def _mean(self, step: int, mean: RoundMean, *, durable_step: int) -> m.Mean:
        return m.Mean(
            **self._addressed,
            answers=mean.answers,
            step=step,
            durable_step=durable_step,
            round=mean.round,
            record=mean.record,
            initial=mean.initial,
            kept=mean.kept,
            opened=mean.opened,
            drawn=mean.drawn,
            sealed=mean.sealed,
            scheduled=mean.scheduled,
            names=tuple(mean.ends),
            values=tuple(mean.ends.values()),
        )

    def _gradient(
        self, step: int, micro: int, result: MicroResult, *, durable_step: int, skipped: bool = False
    ) -> m.Gradient:
        return m.Gradient(
            **self._addressed,
            answers=result.answers,
            step=step,
            micro=micro or None,
            durable_step=durable_step,
            loss=result.loss,
            skipped=skipped,
            kept=result.kept,
            **m.carried(result.gradients),
            checkpoint=self._replica.wants_checkpoint,
        )
