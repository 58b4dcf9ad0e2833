"""A body in this process's memory: weights, optimizer, the open step. Computation only.

Everything here runs in the torch thread and can be thrown away: the store has what it takes to build it
again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from broker import decode_tensor, encode_tensor
from server_worker.engine.base import (
    DIGEST,
    Backward,
    BackwardDone,
    Evaluate,
    Forward,
    ForwardDone,
    Rebase,
    RebaseDone,
    StepDone,
)
from spliteasy.codecs.packer import Packed, Packer, bytes_of, expected_like, expected_of, unpack
from spliteasy.errors import DataError, OutputsMismatch
from spliteasy.fleet.parts import averaged_part, model_part, rebased, window_part
from spliteasy.graph.boundary import check_gradients, check_values
from spliteasy.graph.document import Value, ValueSpec
from spliteasy.graph.tensors import tensors_from_bytes
from spliteasy.job import Job
from spliteasy.job.micro_batches import micro_sizes, share_of
from spliteasy.runtime.accelerator import on_host, to_host, to_processor
from spliteasy.training.digest import digest_of
from spliteasy.training.private_trainer import PrivateTrainer, from_the_device, segment_trainer
from spliteasy.training.segment_trainer import (
    Gradients,
    NotFinite,
    OpenForward,
    all_finite,
    backward_from,
    detached,
    tensors_of,
)

BODY = "body/"
"""Begins the names of the body's tensors in a mean, beside those of head and tail."""


@dataclass(slots=True)
class _Open:
    """A micro-batch of the open step, until its backward has run."""

    graph: OpenForward
    outputs: Packed
    targets: tuple[Tensor, ...]
    share: float


class BodyTrainer:
    """A body after step `trainer.step`, and at most one open step on top.

    It lies and is computed on the processor of its job's body; what comes and goes lies in the host's memory.

    The open step's micro-batches are computed in order: each forward after those before it, and likewise each
    backward.
    """

    def __init__(self, job: Job, replica: str, *, device: str, lane: int = 0) -> None:
        """`lane`: the one of its processor's streams that all of it is computed on."""
        self.job = job
        self.lane = lane
        self.processor = job.body.processor
        self.replica = replica
        self._device = device
        self.trainer = segment_trainer(job.body.spawn(), job.spec, device=device, role="body")
        self._open: dict[int, _Open] = {}
        """By micro-batch, those whose backward has not run."""
        self._sent: list[Packed] = []
        """The gradients that the backwards of the open step gave, by micro-batch."""
        self._spoiled = False
        """A gradient of the open step was not finite, and the job lets the step pass."""
        self._codecs = job.spec.link.codecs
        self._packer = Packer(self._codecs, job.spec.seed, device, "down")
        self.shared_bytes = {each.digest: each.tensor.nbytes for each in job.body.frozen.values()}
        self.state_bytes = self.trainer.nbytes() + self._feedback_bytes()
        self._tolerant = job.spec.durability.exactness == "tolerance"

    def _feedback_bytes(self) -> int:
        """The most that error feedback holds back, which the job's shapes bound. It counts from the start: no
        request can make the state larger."""
        spec, body, packer = self.job.spec, self.job.body, self._packer
        down = () if spec.single else body.output_values[: body.n_wire]
        total, length = 0, spec.model.max_length or 0
        for samples in micro_sizes(spec.batch_size, spec.micro_batches):
            total += packer.feedback_bytes("activations", expected_of(down, samples, length))
            total += packer.feedback_bytes("gradients", expected_of(body.input_values, samples, length))
        return total

    @property
    def step(self) -> int:
        return self.trainer.step

    def restore(self, blobs: Mapping[str, bytes], step: int) -> None:
        """Take over a snapshot of `step`; an empty one is the job's initial state."""
        if blobs:
            state = {name: decode_tensor(blob) for name, blob in blobs.items()}
            self.trainer.load_state(state, step=step)
            self._packer.load_state(state)

    def snapshot(self) -> dict[str, bytes]:
        """Return the state after `step`, one blob a tensor."""
        state = {**on_host(self.trainer.snapshot()), **self._packer.state()}
        return {name: encode_tensor(tensor) for name, tensor in state.items()}

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights and buffers."""
        return on_host(self.trainer.weights())

    def averaged_part(self) -> dict[str, Tensor]:
        """Return a copy of what the body hands in at the end of a round."""
        fleet = self.job.spec.fleet
        part = window_part(self.trainer) if fleet.shares_body else averaged_part(self.trainer, fleet)
        return {BODY + name: tensor for name, tensor in on_host(part).items()}

    def rebase(self, request: Rebase) -> RebaseDone:
        """Take a step that goes on from the mean of a round, or from the initial model (no bytes)."""
        self.abort()
        fleet = self.job.spec.fleet
        tensors = tensors_from_bytes(request.mean) if request.mean else {}
        if request.ends:
            tensors |= tensors_from_bytes(request.ends)
        own = {name[len(BODY) :]: tensor for name, tensor in tensors.items() if name.startswith(BODY)}
        if not own:
            initial = BodyTrainer(self.job, self.replica, device=self._device).trainer
            own = on_host(model_part(initial) if fleet.shares_body else averaged_part(initial, fleet))
        if not fleet.shares_body:
            own = rebased(on_host(self.trainer.snapshot()), own, fleet)
        self.trainer.rebase(own, scheduled=request.scheduled)
        # In the order of names: the reply has to be the same bytes when it is made again.
        ends = {name: tensors[name] for name in sorted(tensors) if not name.startswith(BODY)}
        digest = digest_of(
            [request.round, self.trainer.ahead, *ends.values(), self.step, *self.trainer.moving()]
        )
        return RebaseDone(DIGEST + digest, ends)

    def forward(self, request: Forward) -> ForwardDone:
        """Open the next micro-batch of step + 1; micro-batch 0 begins the step again."""
        if request.micro == 0:
            self.abort()
        specs = self.trainer.segment.input_values
        values = self._arrived(request, specs)
        share = self._share(request) if request.targets else 0.0
        with _places_found():
            graph = self.trainer.forward(to_processor(values, self.processor), micro=request.micro)
        outputs = Packed(())
        if not request.targets:
            outputs = self._packer.pack(
                "activations",
                to_host(detached(graph.outputs)),
                step=self.step + 1,
                micro=request.micro,
                codec=request.codec,
            )
        self._open[request.micro] = _Open(graph, outputs, request.targets, share)
        return ForwardDone(outputs, bytes_of(graph.outputs), share)

    def backward(self, request: Backward) -> BackwardDone:
        """Close the oldest open micro-batch."""
        opened = self._open[len(self._sent)]
        if request.gradients is None:
            gradients, loss = self._from_loss(opened)
        else:
            gradients, loss = self._from_gradients(opened, request, request.gradients), None
        gradients = to_host(gradients)
        finite = all_finite([g for g in gradients if g is not None]) and math.isfinite(loss or 0.0)
        if not finite:
            self._let_pass()
        kept = gradients if not self._spoiled else (None,) * len(gradients)
        micro = len(self._sent)
        packed = self._packer.pack("gradients", kept, step=self.step + 1, micro=micro, codec=request.codec)
        del self._open[micro]
        self._sent.append(packed)
        return BackwardDone(packed, loss)

    def take_step(self) -> StepDone:
        """Take the optimizer step, after the backwards of all micro-batches."""
        if not self._spoiled and not self.trainer.finite():
            self._let_pass()
        skipped, count = self._spoiled, len(self.trainer.segment.input_values)
        sent = [value for packed in self._sent for value in packed.values]
        if skipped:
            sent = [None] * (count * len(self._sent))
            self.trainer.skip()
            self._packer.abort()
        else:
            if self.job.spec.fleet.shares_body:
                self.trainer.hold()
            else:
                self.trainer.apply()
            self._packer.apply()
        self._forget()
        return StepDone(self._digest(sent), skipped)

    def evaluate(self, request: Evaluate) -> Packed:
        """The body's outputs in evaluation mode."""
        specs = self.trainer.eval_inputs
        values = self._arrived(request, specs)
        with _places_found():
            outputs = self.trainer.evaluate(to_processor(values, self.processor))
        return self._packer.pack_evaluation(to_host(outputs), codec=request.codec)

    def _arrived(self, request: Forward | Evaluate, specs: Sequence[ValueSpec]) -> tuple[Value, ...]:
        """The values of a request, unpacked. Raises DataError where they are not as the request says."""
        samples, length = request.samples, request.length
        expected = expected_of(specs, samples, length)
        arrived = unpack(request.values, expected, codecs=self._codecs["activations"])
        return check_values(arrived, specs, samples=samples, length=length)

    def abort(self) -> None:
        """Forget the open step."""
        self.trainer.abort()
        self._packer.abort()
        self._forget()

    def _share(self, request: Forward) -> float:
        """Return the weight of the micro-batch. Raises DataError where that is more than all of the batch."""
        if request.counted is None:
            return share_of(request.samples, request.batch)
        share = share_of(self.job.measure.elements(request.targets), request.counted)
        if not 0 <= share <= 1:
            raise DataError(f"a micro-batch counts for {share:.3g} of its batch")
        return share

    def _from_gradients(self, opened: _Open, request: Backward, packed: Packed) -> Gradients:
        outputs = opened.graph.outputs
        if request.outputs is not None and not self._tolerant:
            own = digest_of(opened.outputs.values)
            if own != request.outputs:
                raise OutputsMismatch(self.replica, request.step, device=request.outputs, own=own)
        arrived = unpack(packed, expected_like(outputs), codecs=self._codecs["gradients"])
        gradients = check_gradients(arrived, outputs)
        if isinstance(self.trainer, PrivateTrainer):
            if request.noise is None:
                raise DataError(
                    f"a BACKWARD of {self.replica} came without noise, and the job trains by DP-SGD"
                )
            self.trainer.give_noise(from_the_device(request.noise), request.noise.multiplier)
        return self.trainer.backward(opened.graph, to_processor(gradients, self.processor))

    def _from_loss(self, opened: _Open) -> tuple[Gradients, float | None]:
        """The gradients of the activations, and the loss where an element has a label.

        The loss is computed in the host's memory: a target that is none is an error there, and would be the
        end of an accelerator.
        """
        outputs = tuple(output.cpu() for output in tensors_of(opened.graph.outputs))
        with _places_found():
            loss = self.job.loss(outputs, opened.targets)
        backward_from(loss, opened.share, self.job.spec.accumulate)
        gradients = tuple(v.grad if isinstance(v, Tensor) else None for v in opened.graph.inputs)
        return gradients, float(loss.detach()) if self.job.measure.measured(opened.targets) else None

    def _digest(self, sent: list[Tensor | int | None]) -> str:
        """Return the digest of all that the step gave.

        It covers gradients as they travel, new weights and buffers, and what codecs held back: gradients
        alone would be one constant under a frozen head.
        """
        held_back = [tensor for _, tensor in sorted(self._packer.state().items())]
        return DIGEST + digest_of([*sent, self.step, *self.trainer.moving(), *held_back])

    def _let_pass(self) -> None:
        """The step will have no effect; raises NotFinite where the job wants to stop instead."""
        if self.job.spec.durability.on_non_finite != "skip":
            raise NotFinite
        self._spoiled = True

    def _forget(self) -> None:
        self._open.clear()
        self._sent = []
        self._spoiled = False


@contextmanager
def _places_found() -> Iterator[None]:
    """Make a place that a kernel did not find what it is: a fault of the values. Raises DataError."""
    try:
        yield
    except IndexError as error:
        raise DataError(f"a value names a place that is not there: {error}"[:300]) from error
