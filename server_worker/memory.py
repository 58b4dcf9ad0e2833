"""A session's body in memory: weights, optimizer, the open forward, the last reply. Computation only.

Everything here runs in the torch thread and can be thrown away: the store has what it takes to build it
again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from broker import decode, decode_tensor, encode_tensor
from broker import messages as m
from server_worker.store import LogEntry
from spliteasy.boundary import check_gradients, check_values
from spliteasy.digest import digest_of
from spliteasy.errors import ReplayMismatch, SplitEasyError
from spliteasy.job import Job
from spliteasy.training import (
    Gradients,
    NotFinite,
    OpenForward,
    SegmentTrainer,
    Values,
    all_finite,
    backward_from,
    tensors_of,
)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step of the body gave: the activations' gradients, their digest, the loss."""

    gradients: Gradients
    digest: str
    loss: float | None
    skipped: bool = False
    """A gradient was not finite, and the job lets such a step pass without effect."""


class SessionMemory:
    """The body of one session after step `trainer.step`, and at most one open forward on top."""

    def __init__(self, job: Job, session: str) -> None:
        device = session.partition(".")[2]
        self.job = job
        self.session = session
        self.trainer = SegmentTrainer(job.body.spawn(), job.spec, device=device, role="body")
        self.request: str | None = None
        """The FORWARD that is open."""
        self._opened: OpenForward | None = None
        self._targets: tuple[Tensor, ...] = ()
        self.state_bytes = self.trainer.nbytes()

    @property
    def step(self) -> int:
        return self.trainer.step

    @property
    def outputs(self) -> Values:
        """What the open forward sends down."""
        assert self._opened is not None
        return tuple(v.detach() if isinstance(v, Tensor) else v for v in self._opened.outputs)

    def restore(self, blobs: Mapping[str, bytes], step: int) -> None:
        """Take over a snapshot of `step`; an empty one is the job's initial state."""
        if blobs:
            self.trainer.load_state({name: decode_tensor(blob) for name, blob in blobs.items()}, step=step)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the state after `step`."""
        return self.trainer.snapshot()

    def forward(self, request: m.Forward) -> None:
        """Open the forward of step + 1. Raises DataError where the values don't fit the body."""
        self.abort()
        split = len(request.values) - request.targets
        values = check_values(
            request.values[:split], self.trainer.segment.input_values, samples=request.samples
        )
        self._targets = tensors_of(request.values[split:])
        self._opened = self.trainer.forward(values)
        self.request = request.request

    def backward(self, request: m.Backward) -> StepResult:
        """Close the open forward with the device's gradients and take the step."""
        assert self._opened is not None
        gradients = check_gradients(request.values, self._opened.outputs)
        return self._take_step(self.trainer.backward(self._opened, gradients), None)

    def backward_from_loss(self) -> StepResult:
        """Shared labels: compute the loss here, close the open forward and take the step."""
        assert self._opened is not None
        loss = self.job.loss(tensors_of(self._opened.outputs), self._targets)
        backward_from(loss)
        gradients = tuple(v.grad if isinstance(v, Tensor) else None for v in self._opened.inputs)
        return self._take_step(gradients, float(loss.detach()))

    def replay(self, entry: LogEntry) -> tuple[str, StepResult]:
        """Take the step of a log entry again; returns the id of the request that its GRADIENT answers.

        Raises ReplayMismatch where it gives other bits than it had given.
        """
        answered = ""
        result: StepResult | None = None
        for raw in entry.requests:
            request = decode(raw)
            if isinstance(request, m.Forward):
                answered = request.request
                self.forward(request)
                if request.targets:
                    result = self.backward_from_loss()
            elif isinstance(request, m.Backward):
                answered = request.request
                result = self.backward(request)
        if result is None:
            raise SplitEasyError(f"session {self.session}: the log entry of step {entry.step} is not whole")
        if result.digest != entry.gradient_digest:
            raise ReplayMismatch(
                self.session, entry.step, logged=entry.gradient_digest, replayed=result.digest
            )
        return answered, result

    def evaluate(self, request: m.Eval) -> Values:
        """The body's outputs in evaluation mode."""
        values = check_values(request.values, self.trainer.eval_inputs, samples=None)
        return self.trainer.evaluate(values)

    def abort(self) -> None:
        """Forget the open forward."""
        self.trainer.abort()
        self._opened, self.request, self._targets = None, None, ()

    def _take_step(self, gradients: Gradients, loss: float | None) -> StepResult:
        finite = all_finite([g for g in gradients if g is not None]) and self.trainer.finite()
        if not finite or (loss is not None and not math.isfinite(loss)):
            return self._not_finite(len(gradients))
        self.trainer.apply()
        self._opened, self.request, self._targets = None, None, ()
        return StepResult(gradients, digest_of(gradients), loss)

    def _not_finite(self, count: int) -> StepResult:
        if self.job.spec.durability.on_non_finite != "skip":
            raise NotFinite
        self._opened, self.request, self._targets = None, None, ()
        self.trainer.skip()
        nothing = (None,) * count
        return StepResult(nothing, digest_of(nothing), None, skipped=True)


def encode_state(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """One blob a tensor, for the store."""
    return {name: encode_tensor(tensor) for name, tensor in state.items()}
