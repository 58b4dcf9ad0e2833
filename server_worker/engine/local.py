"""A session's body in memory: weights, optimizer, the open step. Computation only.

Everything here runs in the torch thread and can be thrown away: the store has what it takes to build it
again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from broker import decode, decode_tensor, encode_tensor
from broker.protocol import messages as m
from server_worker.store import LogEntry
from spliteasy.codecs.packer import Packed, Packer, expected_like, expected_of, unpack
from spliteasy.errors import DataError, ReplayMismatch, SplitEasyError
from spliteasy.graph.boundary import check_gradients, check_values
from spliteasy.job import Job
from spliteasy.job.micro_batches import micro_sizes, share_of
from spliteasy.training.digest import digest_of, digest_of_all
from spliteasy.training.segment_trainer import (
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
class MicroResult:
    """What the backward of one micro-batch gave: its activations' gradients and, if known here, its loss."""

    answers: str
    """The request that its GRADIENT answers."""
    gradients: Packed
    loss: float | None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step of the body gave."""

    micros: tuple[MicroResult, ...]
    digest: str
    """Of the gradients of all of them."""
    skipped: bool = False
    """A gradient was not finite, and the job lets such a step pass without effect."""


@dataclass(slots=True)
class _Open:
    """A micro-batch of the open step, until its backward has run."""

    request: str
    samples: int
    graph: OpenForward
    outputs: Packed
    targets: tuple[Tensor, ...]
    reply_codec: str | None


class SessionMemory:
    """The body of one session after step `trainer.step`, and at most one open step on top.

    The open step's micro-batches are computed in order: `forwarded` forwards, `returned` backwards so far.
    """

    def __init__(self, job: Job, session: str) -> None:
        device = session.partition(".")[2]
        self.job = job
        self.session = session
        self.trainer = SegmentTrainer(job.body.spawn(), job.spec, device=device, role="body")
        self._forwards: list[str] = []
        """The FORWARDs of the open step, by their ids."""
        self._open: dict[int, _Open] = {}
        self._results: list[MicroResult] = []
        self._digests: list[str] = []
        self._spoiled = False
        """A gradient of the open step was not finite, and the job lets the step pass."""
        self._batch = 0
        self._codecs = job.spec.link.codecs
        self._packer = Packer(self._codecs, job.spec.seed, device, "down")
        self.state_bytes = self.trainer.nbytes()

    @property
    def step(self) -> int:
        return self.trainer.step

    @property
    def forwarded(self) -> int:
        return len(self._forwards)

    @property
    def returned(self) -> int:
        return len(self._results)

    @property
    def micros(self) -> int:
        """How many micro-batches the open step has."""
        return len(micro_sizes(self._batch, self.job.spec.micro_batches))

    def forward_id(self, micro: int) -> str | None:
        """The FORWARD of the open step's micro-batch."""
        return self._forwards[micro] if micro < len(self._forwards) else None

    def outputs(self, micro: int) -> Packed:
        """What the open forward sends down."""
        return self._open[micro].outputs

    def result(self, micro: int) -> MicroResult:
        """What the backward of the open step's micro-batch gave."""
        return self._results[micro]

    def knows(self, request: str) -> bool:
        """Whether the open step was computed from that request."""
        return request in self._forwards or any(result.answers == request for result in self._results)

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
        """Open the next micro-batch of step + 1; micro-batch 0 begins the step anew.

        Raises DataError where the values don't fit the body, or the micro-batch not the batch.
        """
        if request.micro == 0:
            self.abort()
            self._batch = request.batch or request.samples
        self._check_micro(request)
        specs = self.trainer.segment.input_values
        first_target = len(request.values) - request.targets
        arrived = unpack(
            m.packed_in(request, last=first_target),
            expected_of(specs, request.samples),
            codecs=self._codecs["activations"],
        )
        values = check_values(arrived, specs, samples=request.samples)
        targets = tensors_of(request.values[first_target:])
        graph = self.trainer.forward(values, micro=request.micro)
        outputs = Packed(())
        if not request.targets:
            outputs = self._packer.pack(
                "activations",
                detached(graph.outputs),
                step=self.step + 1,
                micro=request.micro,
                codec=request.reply_codec,
            )
        self._open[request.micro] = _Open(
            request.request, request.samples, graph, outputs, targets, request.reply_codec
        )
        self._forwards.append(request.request)

    def backward(self, request: m.Backward) -> StepResult | None:
        """Close the next micro-batch with the device's gradients; the last of them takes the step."""
        opened = self._open[self.returned]
        outputs = opened.graph.outputs
        arrived = unpack(m.packed_in(request), expected_like(outputs), codecs=self._codecs["gradients"])
        gradients = check_gradients(arrived, outputs)
        return self._close(
            request.request, self.trainer.backward(opened.graph, gradients), None, codec=request.reply_codec
        )

    def backward_from_loss(self) -> StepResult | None:
        """The same with shared labels: the loss is computed here."""
        opened = self._open[self.returned]
        loss = self.job.loss(tensors_of(opened.graph.outputs), opened.targets)
        backward_from(loss, share_of(opened.samples, self._batch))
        gradients = tuple(v.grad if isinstance(v, Tensor) else None for v in opened.graph.inputs)
        return self._close(opened.request, gradients, float(loss.detach()), codec=opened.reply_codec)

    def replay_all(self, entries: Sequence[LogEntry]) -> StepResult:
        """Take the steps of these entries, at least one, again; what `replay` gave for the last."""
        for entry in entries:
            last = self.replay(entry)
        return last

    def replay(self, entry: LogEntry) -> StepResult:
        """Take the step of a log entry again. Raises ReplayMismatch where it gives other bits than it had."""
        result: StepResult | None = None
        for raw in entry.requests:
            request = decode(raw)
            if isinstance(request, m.Forward):
                self.forward(request)
                if request.targets:
                    result = self.backward_from_loss()
            elif isinstance(request, m.Backward):
                result = self.backward(request)
        if result is None:
            raise SplitEasyError(f"session {self.session}: the log entry of step {entry.step} is not whole")
        if result.digest != entry.gradient_digest:
            raise ReplayMismatch(
                self.session, entry.step, logged=entry.gradient_digest, replayed=result.digest
            )
        return result

    def evaluate(self, request: m.Eval) -> Packed:
        """The body's outputs in evaluation mode."""
        specs = self.trainer.eval_inputs
        arrived = unpack(
            m.packed_in(request), expected_of(specs, request.samples), codecs=self._codecs["activations"]
        )
        values = check_values(arrived, specs, samples=request.samples)
        return self._packer.pack_evaluation(self.trainer.evaluate(values), codec=request.reply_codec)

    def abort(self) -> None:
        """Forget the open step."""
        self.trainer.abort()
        self._packer.abort()
        self._forget()

    def _forget(self) -> None:
        self._forwards, self._results, self._digests = [], [], []
        self._open.clear()
        self._spoiled = False

    def _check_micro(self, request: m.Forward) -> None:
        sizes = micro_sizes(self._batch, self.job.spec.micro_batches)
        whole = request.batch or request.samples
        if (whole, request.samples) != (self._batch, dict(enumerate(sizes)).get(request.micro)):
            raise DataError(
                f"{request.samples} samples of {whole} are not micro-batch {request.micro} of a batch of "
                f"{self._batch} in {len(sizes)}"
            )
        if bool(request.targets) != self.job.spec.single:
            raise DataError(f"{request.targets} targets arrived in a FORWARD of {request.job}")

    def _close(
        self, answers: str, gradients: Gradients, loss: float | None, *, codec: str | None
    ) -> StepResult | None:
        micro = self.returned
        finite = all_finite([g for g in gradients if g is not None]) and math.isfinite(loss or 0.0)
        if not finite:
            self._let_pass()
        kept = gradients if not self._spoiled else (None,) * len(gradients)
        packed = self._packer.pack("gradients", kept, step=self.step + 1, micro=micro, codec=codec)
        del self._open[micro]
        self._results.append(MicroResult(answers, packed, loss))
        self._digests.append(digest_of(kept))
        return self._take_step(len(gradients)) if self.returned == self.micros else None

    def _take_step(self, count: int) -> StepResult:
        if not self._spoiled and not self.trainer.finite():
            self._let_pass()
        micros, digests, skipped = tuple(self._results), self._digests, self._spoiled
        if skipped:
            nothing: Gradients = (None,) * count
            micros = tuple(MicroResult(each.answers, Packed(nothing), None) for each in micros)
            digests = [digest_of(nothing)] * len(micros)
            self.trainer.skip()
            self._packer.abort()
        else:
            self.trainer.apply()
            self._packer.apply()
        self._forget()
        return StepResult(micros, digest_of_all(digests), skipped)

    def _let_pass(self) -> None:
        """The step will have no effect; raises NotFinite where the job wants to stop instead."""
        if self.job.spec.durability.on_non_finite != "skip":
            raise NotFinite
        self._spoiled = True


def encode_state(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """One blob a tensor, for the store."""
    return {name: encode_tensor(tensor) for name, tensor in state.items()}
