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
from spliteasy.packing import Packed, Packer, expected_like, expected_of, unpack
from spliteasy.training import (
    Gradients,
    NotFinite,
    OpenForward,
    SegmentTrainer,
    all_finite,
    backward_from,
    detached,
    tensors_of,
)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step of the body gave: the activations' gradients, their digest, the loss."""

    gradients: Packed
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
        self._outputs = Packed(())
        link = job.spec.link
        self._link = link
        self._packer = Packer(
            {"activations": link.activations, "gradients": link.gradients}, job.spec.seed, device, "down"
        )
        self._targets: tuple[Tensor, ...] = ()
        self.state_bytes = self.trainer.nbytes()

    @property
    def step(self) -> int:
        return self.trainer.step

    @property
    def outputs(self) -> Packed:
        """What the open forward sends down."""
        assert self._opened is not None
        return self._outputs

    def restore(self, blobs: Mapping[str, bytes], step: int) -> None:
        """Take over a snapshot of `step`; an empty one is the job's initial state."""
        if blobs:
            state = {name: decode_tensor(blob) for name, blob in blobs.items()}
            self.trainer.load_state(state, step=step)
            self._packer.load_state(state)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the state after `step`."""
        return {**self.trainer.snapshot(), **self._packer.state()}

    def forward(self, request: m.Forward) -> None:
        """Open the forward of step + 1. Raises DataError where the values don't fit the body."""
        self.abort()
        specs = self.trainer.segment.input_values
        first_target = len(request.values) - request.targets
        arrived = unpack(
            m.packed_in(request, last=first_target),
            expected_of(specs, request.samples),
            codec=self._link.activations,
        )
        values = check_values(arrived, specs, samples=request.samples)
        self._targets = tensors_of(request.values[first_target:])
        self._opened = self.trainer.forward(values)
        self._outputs = self._packer.pack("activations", detached(self._opened.outputs), step=self.step + 1)
        self.request = request.request

    def backward(self, request: m.Backward) -> StepResult:
        """Close the open forward with the device's gradients and take the step."""
        assert self._opened is not None
        outputs = self._opened.outputs
        arrived = unpack(m.packed_in(request), expected_like(outputs), codec=self._link.gradients)
        gradients = check_gradients(arrived, outputs)
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

    def evaluate(self, request: m.Eval) -> Packed:
        """The body's outputs in evaluation mode."""
        specs = self.trainer.eval_inputs
        arrived = unpack(
            m.packed_in(request), expected_of(specs, request.samples), codec=self._link.activations
        )
        values = check_values(arrived, specs, samples=request.samples)
        return self._packer.pack_evaluation(self.trainer.evaluate(values))

    def abort(self) -> None:
        """Forget the open forward."""
        self.trainer.abort()
        self._packer.abort()
        self._opened, self.request, self._targets = None, None, ()

    def _take_step(self, gradients: Gradients, loss: float | None) -> StepResult:
        finite = all_finite([g for g in gradients if g is not None]) and self.trainer.finite()
        if not finite or (loss is not None and not math.isfinite(loss)):
            return self._not_finite(len(gradients))
        self.trainer.apply()
        packed = self._packer.pack("gradients", gradients, step=self.step)
        self._packer.apply()
        self._opened, self.request, self._targets = None, None, ()
        return StepResult(packed, digest_of(gradients), loss)

    def _not_finite(self, count: int) -> StepResult:
        if self.job.spec.durability.on_non_finite != "skip":
            raise NotFinite
        self._opened, self.request, self._targets = None, None, ()
        self.trainer.skip()
        self._packer.abort()
        nothing = (None,) * count
        return StepResult(Packed(nothing), digest_of(nothing), None, skipped=True)


def encode_state(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """One blob a tensor, for the store."""
    return {name: encode_tensor(tensor) for name, tensor in state.items()}
