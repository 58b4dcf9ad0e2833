"""A session's body in memory: weights, optimizer, the open step. Computation only.

Everything here runs in the torch thread and can be thrown away: the store has what it takes to build it
again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import orjson
import torch
from torch import Tensor

from broker import decode, decode_tensor, encode_tensor
from broker.protocol import messages as m
from server_worker.store import LogEntry
from spliteasy.codecs.packer import (
    Packed,
    Packer,
    bytes_expected,
    bytes_of,
    expected_like,
    expected_of,
    unpack,
)
from spliteasy.errors import DataError, OutputsMismatch, ReplayMismatch, SplitEasyError
from spliteasy.fleet.parts import averaged_part, rebased
from spliteasy.graph.boundary import check_gradients, check_values
from spliteasy.graph.tensors import tensors_from_bytes
from spliteasy.job import Job
from spliteasy.job.io_schema import dtype_name
from spliteasy.job.micro_batches import micro_sizes, share_of
from spliteasy.training.digest import digest_of
from spliteasy.training.private_trainer import BodyNoise, PrivateTrainer, from_the_device, segment_trainer
from spliteasy.training.segment_trainer import (
    Gradients,
    NotFinite,
    OpenForward,
    all_finite,
    backward_from,
    detached,
    tensors_of,
)

DIGEST = "state-"
"""Before a step's digest: it is of the state too. Earlier versions wrote one of the gradients alone."""

BODY = "body/"
"""Begins the names of the body's tensors in a mean, beside those of head and tail."""

ROUND_KEY = "fleet/round"

HEADER_BYTES = 1 << 20
"""What a request may have beside its values, which no codec makes four times as long."""


@dataclass(frozen=True, slots=True)
class MicroResult:
    """What the backward of one micro-batch gave: its activations' gradients and, if known here, its loss."""

    answers: str
    """The request that its GRADIENT answers."""
    gradients: Packed
    loss: float | None
    share: float
    """What its loss counts for in the batch's."""


@dataclass(frozen=True, slots=True)
class RoundMean:
    """The mean that a step goes on from, and the record that decided it."""

    answers: str
    """The request that its MEAN answers."""
    round: int
    record: str
    ends: dict[str, Tensor]
    """The means of head and tail; empty where these stay on the device."""
    initial: bool
    """No mean was taken yet: the initial model takes its place."""
    drawn: int
    """How many devices were drawn for the next round."""
    sealed: m.SealedSum | None
    """Of whom the sum is, where the ends were sealed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAbout:
    """What goes with a mean: the log keeps it beside the mean's bytes."""

    round: int
    record: str
    drawn: int
    sealed: m.SealedSum | None = None

    def to_json(self) -> bytes:
        sealed = None if self.sealed is None else self.sealed.model_dump(mode="json")
        return orjson.dumps({**asdict(self), "sealed": sealed})

    @classmethod
    def from_json(cls, line: bytes) -> RoundAbout:
        said = orjson.loads(line)
        sealed = said.pop("sealed")
        return cls(**said, sealed=None if sealed is None else m.SealedSum.model_validate(sealed))


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step of the body gave: an optimizer step, or one that goes on from a mean."""

    micros: tuple[MicroResult, ...]
    digest: str
    """Of the gradients of all of them, and of the state after the step."""
    skipped: bool = False
    """A gradient was not finite, and the job lets such a step pass without effect."""
    mean: RoundMean | None = None
    """There where the step goes on from a mean."""


@dataclass(slots=True)
class _Open:
    """A micro-batch of the open step, until its backward has run."""

    request: str
    samples: int
    graph: OpenForward
    outputs: Packed
    targets: tuple[Tensor, ...]
    share: float
    """What its loss counts for in the batch's, where the loss is computed here."""
    reply_codec: str | None


class BodyTrainer:
    """The body of one session after step `trainer.step`, and at most one open step on top.

    The open step's micro-batches are computed in order: `forwarded` forwards, `returned` backwards so far.
    """

    def __init__(self, job: Job, session: str) -> None:
        device = session.partition(".")[2]
        self.job = job
        self.session = session
        self.trainer = segment_trainer(job.body.spawn(), job.spec, device=device, role="body")
        self._forwards: list[str] = []
        """The FORWARDs of the open step, by their ids."""
        self._open: dict[int, _Open] = {}
        self._results: list[MicroResult] = []
        self._spoiled = False
        """A gradient of the open step was not finite, and the job lets the step pass."""
        self._batch = 0
        self._codecs = job.spec.link.codecs
        self._packer = Packer(self._codecs, job.spec.seed, device, "down")
        self.round = 0
        """The round that the device trains for; 0: it has not begun with the others."""
        self.samples = 0
        """Samples that the body was trained on in this round."""
        self.round_began = 0
        """Optimizer steps taken before this round."""
        self.state_bytes = self.trainer.nbytes()
        self._tolerant = job.spec.durability.exactness == "tolerance"

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
            if ROUND_KEY in state:
                self.round, self.samples, self.round_began = state[ROUND_KEY].tolist()

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the state after `step`."""
        state = {**self.trainer.snapshot(), **self._packer.state()}
        if self.job.spec.fleet.averages:
            state[ROUND_KEY] = torch.tensor([self.round, self.samples, self.round_began])
        return state

    def averaged_part(self) -> dict[str, Tensor]:
        """Return a copy of what the body hands in at the end of a round."""
        part = averaged_part(self.trainer, self.job.spec.fleet)
        return {BODY + name: tensor for name, tensor in part.items()}

    def rebase(self, request: m.Ready, about: RoundAbout, mean: bytes) -> StepResult:
        """Take a step that goes on from the mean of a round, or from the initial model (no bytes)."""
        self.abort()
        fleet = self.job.spec.fleet
        tensors = tensors_from_bytes(mean) if mean else {}
        own = {name[len(BODY) :]: tensor for name, tensor in tensors.items() if name.startswith(BODY)}
        if not mean:
            own = averaged_part(BodyTrainer(self.job, self.session).trainer, fleet)
        self.trainer.rebase(rebased(self.trainer.snapshot(), own, fleet))
        self.round, self.samples, self.round_began = about.round + 1, 0, self.trainer.taken
        # In the order of names: the reply has to be the same bytes when it is made again.
        ends = {name: tensors[name] for name in sorted(tensors) if not name.startswith(BODY)}
        result = RoundMean(
            answers=request.request,
            round=about.round,
            record=about.record,
            ends=ends,
            initial=not mean,
            drawn=about.drawn,
            sealed=about.sealed if mean else None,
        )
        digest = digest_of([about.round, *ends.values(), self.step, *self.trainer.moving()])
        return StepResult((), DIGEST + digest, mean=result)

    @property
    def open_bytes(self) -> int:
        """Bytes that the open step takes; it is counted whole from its first micro-batch on."""
        return self.step_bytes if self._forwards else 0

    @property
    def step_bytes(self) -> int:
        """Bytes that a step takes beside the state, until its last backward."""
        return self.job.body.program.costs.train_bytes * self.job.spec.micro_batches

    @property
    def eval_bytes(self) -> int:
        """Bytes that an evaluation takes beside the state."""
        return self.job.body.program.costs.eval_bytes

    def check(self, request: m.Forward | m.Backward | m.Eval, raw_bytes: int) -> None:
        """Whether the request is of the sizes that the job says, before anything is taken for it.

        Raises DataError where it claims more samples than the job's batch, is no micro-batch of it, or is
        larger than what it may carry.
        """
        spec = self.job.spec
        if isinstance(request, m.Eval):
            _check_samples(request.samples, spec.evaluation.batch_size, "evaluation.batch_size")
            expected = bytes_expected(expected_of(self.trainer.eval_inputs, request.samples))
        elif isinstance(request, m.Forward):
            whole = request.batch or request.samples
            _check_samples(whole, spec.batch_size, "batch_size")
            sizes = micro_sizes(whole, spec.micro_batches)
            if request.samples != dict(enumerate(sizes)).get(request.micro):
                raise DataError(
                    f"{request.samples} samples are not micro-batch {request.micro} of a batch of {whole} "
                    f"in {len(sizes)}"
                )
            if bool(request.targets) != spec.single or request.targets > len(request.values):
                raise DataError(f"{request.targets} targets arrived in a FORWARD of {request.job}")
            expected = bytes_expected(expected_of(self.trainer.segment.input_values, request.samples))
            if request.targets:
                expected += self._check_targets(request)
        else:
            opened = self._open.get(request.micro)
            if opened is None:
                return  # what it belongs to is not here, so that it waits, within the limits for that
            expected = bytes_of(opened.graph.outputs)
        most = 4 * expected + HEADER_BYTES
        if raw_bytes > most:
            raise DataError(f"a {request.kind} of {raw_bytes} bytes, where the job's are of {most} at most")

    def _check_targets(self, request: m.Forward) -> int:
        """The bytes of the targets; DataError where they are not what the job's data has."""
        targets, specs = request.values[-request.targets :], self.job.signature.targets
        if len(targets) != len(specs):
            raise DataError(f"{len(targets)} targets arrived, the job has {len(specs)}")
        for target, spec in zip(targets, specs, strict=True):
            shape = (request.samples, *spec.shape)
            if (
                not isinstance(target, Tensor)
                or tuple(target.shape) != shape
                or dtype_name(target.dtype) != spec.dtype
            ):
                raise DataError(f"target {spec.name}: expected {spec.dtype} of shape {shape}")
        return bytes_of(targets)

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
        share = self._share(request, targets) if targets else 0.0
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
            request.request, request.samples, graph, outputs, targets, share, request.reply_codec
        )
        self._forwards.append(request.request)

    def backward(self, request: m.Backward) -> StepResult | None:
        """Close the next micro-batch with the device's gradients; the last of them takes the step."""
        opened = self._open[self.returned]
        outputs = opened.graph.outputs
        if request.outputs is not None and not self._tolerant:
            own = digest_of(opened.outputs.values)
            if own != request.outputs:
                raise OutputsMismatch(self.session, request.step, device=request.outputs, own=own)
        arrived = unpack(m.packed_in(request), expected_like(outputs), codecs=self._codecs["gradients"])
        gradients = check_gradients(arrived, outputs)
        if isinstance(self.trainer, PrivateTrainer):
            if request.noise is None or request.noise_multiplier is None:
                raise DataError(
                    f"a BACKWARD of {request.job} came without noise, and the job trains by DP-SGD"
                )
            noise = BodyNoise(request.noise, request.noise_multiplier)
            self.trainer.give_noise(from_the_device(noise), noise.multiplier)
        return self._close(
            request.request, self.trainer.backward(opened.graph, gradients), None, codec=request.reply_codec
        )

    def backward_from_loss(self) -> StepResult | None:
        """The same with shared labels: the loss is computed here."""
        opened = self._open[self.returned]
        loss = self.job.loss(tensors_of(opened.graph.outputs), opened.targets)
        backward_from(loss, opened.share)
        gradients = tuple(v.grad if isinstance(v, Tensor) else None for v in opened.graph.inputs)
        number = float(loss.detach()) if self.job.measure.measured(opened.targets) else None
        return self._close(opened.request, gradients, number, codec=opened.reply_codec)

    def _share(self, request: m.Forward, targets: tuple[Tensor, ...]) -> float:
        """What the micro-batch counts for. Raises DataError where that is more than all of the batch."""
        if request.counted is None:
            return share_of(request.samples, self._batch)
        share = share_of(self.job.measure.elements(targets), request.counted)
        if not 0 <= share <= 1:
            raise DataError(f"a micro-batch counts for {share:.3g} of its batch")
        return share

    def replay_all(self, entries: Sequence[LogEntry]) -> StepResult:
        """Take the steps of these entries, at least one, again; what `replay` gave for the last."""
        for entry in entries:
            last = self.replay(entry)
        return last

    def replay(self, entry: LogEntry) -> StepResult:
        """Take the step of a log entry again. Raises ReplayMismatch where it gives other bits than it had."""
        result: StepResult | None = None
        first = decode(entry.requests[0])
        if isinstance(first, m.Ready):
            result = self._replay_rebase(first, entry.requests[1:])
        else:
            for request in (first, *map(decode, entry.requests[1:])):
                if isinstance(request, m.Forward):
                    self.forward(request)
                    if request.targets:
                        result = self.backward_from_loss()
                elif isinstance(request, m.Backward):
                    result = self.backward(request)
        if result is None:
            raise SplitEasyError(f"session {self.session}: the log entry of step {entry.step} is not whole")
        if not entry.gradient_digest.startswith(DIGEST):
            raise SplitEasyError(
                f"session {self.session}: step {entry.step} was logged by an earlier version, whose digest "
                "says nothing of the state",
                hint="let a worker of that version serve the session, and stop it by SIGTERM, so that it "
                "leaves a snapshot; or begin anew with `spliteasy agent --restart`",
            )
        if result.digest != entry.gradient_digest and not self._tolerant:
            raise ReplayMismatch(
                self.session, entry.step, logged=entry.gradient_digest, replayed=result.digest
            )
        return result

    def _replay_rebase(self, request: m.Ready, logged: Sequence[bytes]) -> StepResult:
        """Go on from the mean that the log has beside the request."""
        if len(logged) != 2:
            raise SplitEasyError(f"session {self.session}: the log entry of a round's mean is not whole")
        return self.rebase(request, RoundAbout.from_json(logged[0]), logged[1])

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
        self._forwards, self._results = [], []
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
        micro, share = self.returned, self._open[self.returned].share
        finite = all_finite([g for g in gradients if g is not None]) and math.isfinite(loss or 0.0)
        if not finite:
            self._let_pass()
        kept = gradients if not self._spoiled else (None,) * len(gradients)
        packed = self._packer.pack("gradients", kept, step=self.step + 1, micro=micro, codec=codec)
        del self._open[micro]
        self._results.append(MicroResult(answers, packed, loss, share))
        return self._take_step(len(gradients)) if self.returned == self.micros else None

    def _take_step(self, count: int) -> StepResult:
        if not self._spoiled and not self.trainer.finite():
            self._let_pass()
        micros, skipped = tuple(self._results), self._spoiled
        if skipped:
            nothing: Gradients = (None,) * count
            micros = tuple(MicroResult(each.answers, Packed(nothing), None, each.share) for each in micros)
            self.trainer.skip()
            self._packer.abort()
        else:
            self.trainer.apply()
            self._packer.apply()
            self.samples += self._batch
        self._forget()
        return StepResult(micros, self._digest(micros), skipped)

    def _digest(self, micros: Sequence[MicroResult]) -> str:
        """The digest of all that the step gave: gradients as they travel, new weights and buffers, and what
        codecs held back. Gradients alone would be one constant under a frozen head."""
        held_back = [tensor for _, tensor in sorted(self._packer.state().items())]
        sent = [value for micro in micros for value in micro.gradients.values]
        return DIGEST + digest_of([*sent, self.step, *self.trainer.moving(), *held_back])

    def _let_pass(self) -> None:
        """The step will have no effect; raises NotFinite where the job wants to stop instead."""
        if self.job.spec.durability.on_non_finite != "skip":
            raise NotFinite
        self._spoiled = True


def _check_samples(samples: int, most: int, setting: str) -> None:
    if samples > most:
        raise DataError(f"{samples} samples, where the job's {setting} is {most}")


def encode_state(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """One blob a tensor, for the store."""
    return {name: encode_tensor(tensor) for name, tensor in state.items()}
