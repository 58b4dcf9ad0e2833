"""The open step on a device: its micro-batches, what was sent of them and what came back."""

from __future__ import annotations

from dataclasses import dataclass

from broker.protocol import messages as m
from broker.protocol.rows import RowName
from device_agent.session import events as e
from device_agent.session.plan import SessionPlan
from spliteasy.codecs.packer import Packed
from spliteasy.job.micro_batches import micro_sizes


@dataclass(slots=True)
class Micro:
    """A micro-batch of the open step: its requests, and the answers that wait to be used."""

    forward: m.Forward
    names: tuple[RowName, ...] = ()
    """The names of its rows, where the worker may keep them."""
    recall: m.Recall | None = None
    """The request that was to be sent in place of the forward, until something is known of it."""
    outputs: Packed | None = None
    backward: m.Backward | None = None
    gradient: m.Gradient | None = None
    outputs_digest: str | None = None
    """The digest of the outputs that the tail ran on."""


class OpenStep:
    """All FORWARDs and BACKWARDs of the step: they are kept until its last GRADIENT has arrived."""

    def __init__(self, plan: SessionPlan) -> None:
        self._plan = plan
        self.micros: list[Micro] = []
        """Those whose head was computed."""
        self.count = 0
        """The number of micro-batches in the step."""
        self.returned = 0
        """The number of micro-batches whose head backward has run."""

    def forward(
        self, head: e.HeadDone, *, attempt: m.AttemptRef, step: int, oldest_checkpoint: int, best: bool
    ) -> m.Forward:
        """The request of the next micro-batch, whose head was computed.

        `best`: the state before the step is the best so far, which the first one says.
        """
        self.count = len(micro_sizes(head.batch, self._plan.micro_batches))
        forward = m.Forward(
            session=self._plan.session,
            attempt=attempt,
            step=step,
            micro=len(self.micros),
            samples=head.samples,
            length=head.length,
            batch=head.batch if self.count > 1 else None,
            targets=len(head.targets),
            counted=head.counted,
            **m.carried(head.values, *head.targets),
            oldest_checkpoint=oldest_checkpoint,
            keep=True if head.names else None,
            best=True if best and not self.micros else None,
        )
        self.micros.append(Micro(forward, head.names or ()))
        return forward

    def backward(self, tail: e.TailDone, *, attempt: m.AttemptRef, step: int) -> m.Backward:
        """The request of the micro-batch whose tail was computed."""
        index = self.next_tail()
        assert index is not None
        micro = self.micros[index]
        micro.backward = m.Backward(
            session=self._plan.session,
            attempt=attempt,
            step=step,
            micro=index,
            forward=micro.forward.request,
            loss=tail.loss,
            outputs=micro.outputs_digest,
            noise=tail.noise.key if tail.noise else None,
            noise_multiplier=tail.noise.multiplier if tail.noise else None,
            **m.carried(tail.gradients),
        )
        return micro.backward

    def forget(self) -> None:
        """The step is over, or given up."""
        self.micros, self.count, self.returned = [], 0, 0

    @property
    def needs_head(self) -> bool:
        """Return whether the head of another micro-batch is to be computed."""
        return not self.micros or len(self.micros) < self.count

    @property
    def is_skipped(self) -> bool:
        """Return whether a gradient was not finite, so that the step passes without effect."""
        return any(micro.gradient is not None and micro.gradient.skipped for micro in self.micros)

    def next_tail(self) -> int | None:
        """The first micro-batch whose tail has not run; None: all have, or there is no tail."""
        if not self._plan.has_tail:
            return None
        return next((n for n, micro in enumerate(self.micros) if micro.backward is None), None)

    def take_gradient(self) -> m.Gradient | None:
        """The answer that the next head backward runs on, once it is there."""
        micro = self.micros[self.returned]
        gradient, micro.gradient = micro.gradient, None
        return gradient

    def answered_by(self, message: m.Forwarded | m.Gradient) -> Micro | None:
        """The micro-batch whose request this answers. With a tail only BACKWARD brings a GRADIENT."""
        for micro in self.micros:
            from_tail = isinstance(message, m.Gradient) and self._plan.has_tail
            request = micro.backward if from_tail else micro.forward
            if request is not None and request.request == message.answers:
                return micro
        return None

    def micro_of(self, message: m.Missing) -> Micro | None:
        """The micro-batch of which the worker lacks something, if its head was computed."""
        micro = message.micro or 0
        return self.micros[micro] if micro < len(self.micros) else None

    def requests(self) -> dict[str, m.AnyRequest]:
        """All that may have to be sent again, by id."""
        forwards = {micro.forward.request: micro.forward for micro in self.micros}
        backwards = {micro.backward.request: micro.backward for micro in self.micros if micro.backward}
        recalls = {micro.recall.request: micro.recall for micro in self.micros if micro.recall}
        return {**forwards, **backwards, **recalls}
