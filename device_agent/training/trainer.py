"""The device's half of the training: head, tail, loss, data. Computation only; runs in the torch thread."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite

from torch import Tensor

from broker.protocol.messages import Value
from device_agent.training.codec_policy import StepChoices
from device_agent.training.codec_policy import Values as Travelling
from device_agent.training.cut_codec import DeviceWire
from device_agent.training.data import Batches, EvaluationBatches
from device_agent.training.samples import Tensors
from spliteasy.codecs.packer import (
    Packed,
    Packer,
    bytes_expected,
    bytes_of,
    expected_like,
    expected_of,
    unpack,
)
from spliteasy.errors import SplitEasyError
from spliteasy.graph.boundary import check_gradients, check_values
from spliteasy.graph.document import DTYPES
from spliteasy.graph.segment import Segment
from spliteasy.job import Job
from spliteasy.job.micro_batches import share_of, split_batch
from spliteasy.privacy.ends import Drawn
from spliteasy.runtime.randomness import Key
from spliteasy.training.losses import CLASS_LOSSES
from spliteasy.training.segment_trainer import (
    OpenForward,
    SegmentTrainer,
    Values,
    all_finite,
    backward_from,
    detached,
    tensors_of,
)

HEAD, TAIL = "head/", "tail/"


class NotFiniteOnDevice(SplitEasyError):
    """A gradient of head or tail is NaN or infinite; nothing was applied on the device."""


@dataclass(slots=True)
class Evaluation:
    """Sums over the test samples so far."""

    samples: int = 0
    loss: float = 0.0
    correct: int = 0
    counted: int = 0
    """Predictions that were right or wrong; 0 where the model does not classify."""

    @property
    def mean_loss(self) -> float:
        return self.loss / max(1, self.samples)

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.counted if self.counted else None


@dataclass(slots=True)
class _Micro:
    """A micro-batch of the step under way."""

    inputs: Tensors
    targets: Tensors
    share: float
    """What its loss counts for in the batch's."""
    head: OpenForward | None = None
    packed: Packed | None = None
    """The head's wire values, where they were packed ahead."""
    kept_gradients: tuple[Tensor | None, ...] = ()

    @property
    def samples(self) -> int:
        return self.inputs[0].shape[0]


@dataclass(slots=True)
class _Step:
    """A step that is under way: its micro-batches go in order through head, tail and head backward."""

    micros: list[_Micro]
    heads: int = 0
    tails: int = 0
    returned: int = 0
    loss: float = 0.0
    nbytes: dict[Travelling, int] = field(default_factory=dict)
    """Of the values of its first micro-batch, before they are packed."""

    @property
    def samples(self) -> int:
        return sum(micro.samples for micro in self.micros)


@dataclass(slots=True)
class DeviceTrainer:
    """Head and tail of one device, after step `head.step`, and the step under way."""

    job: Job
    batches: Batches
    tests: EvaluationBatches | None
    head: SegmentTrainer
    tail: SegmentTrainer | None
    wire: DeviceWire
    loss: float = float("nan")
    """Training loss of the last step."""
    samples: int = 0
    """Samples of the last step."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    _step: _Step | None = None
    _next: tuple[int, list[_Micro]] | None = None
    """A batch that was loaded ahead, and its step; its heads have run too, where nothing changes them."""
    _targets: tuple[Tensor, ...] = ()
    _kept: Values = ()

    @classmethod
    def create(
        cls,
        job: Job,
        batches: Batches,
        tests: EvaluationBatches | None,
        *,
        device: str,
        key: Key,
        ends: Drawn,
        choices: StepChoices,
    ) -> DeviceTrainer:
        """With the job's initial weights and the device's own (`ends`), at step 0."""
        head, tail = end_trainers(job, device=device, key=key, ends=ends)
        codecs = job.spec.link.codecs
        wire = DeviceWire(codecs, Packer(codecs, job.spec.seed, device, "up"), choices)
        return cls(job, batches, tests, head, tail, wire)

    @property
    def step(self) -> int:
        return self.head.step

    @property
    def shared_loss(self) -> float | None:
        """The loss of the step under way, where the job lets it leave the device; None until all is added."""
        step, _ = self._live()
        whole = step.tails == len(step.micros)
        return step.loss if whole and self.job.spec.share_loss and isfinite(step.loss) else None

    def run_head(self, step: int, micro: int = 0) -> tuple[Packed, int, Tensors, int]:
        """The head's wire values of a micro-batch, in order; micro-batch 0 begins `step`.

        Also: its samples, its targets where labels are shared, and the samples of the whole batch.
        """
        if micro == 0:
            self._step = _Step(self._batch(step))
        under_way, tail = self._live()
        part = under_way.micros[micro]
        if part.head is None:
            part.head = self.head.forward(part.inputs, micro=micro)
        under_way.heads = micro + 1
        wire = detached(part.head.outputs[: self.head.segment.n_wire])
        if micro == 0:
            kept = len(part.head.outputs) - len(wire)
            under_way.nbytes = self._bytes_of_step(wire, part.samples, kept=kept)
        packed = self.wire.pack(
            "activations",
            wire,
            step=step,
            micro=micro,
            answer="activations" if tail else "gradients",
            nbytes=under_way.nbytes,
            ahead=part.packed,
        )
        part.packed = None
        return packed, part.samples, () if tail else part.targets, under_way.samples

    def _batch(self, step: int) -> list[_Micro]:
        ahead, self._next = self._next, None
        return ahead[1] if ahead is not None and ahead[0] == step else self._load(step)

    def _load(self, step: int) -> list[_Micro]:
        inputs, targets = self.batches.batch(step)
        count, samples = self.job.spec.micro_batches, inputs[0].shape[0]
        parts = zip(split_batch(inputs, count), split_batch(targets, count), strict=True)
        return [_Micro(part, wanted, share_of(part[0].shape[0], samples)) for part, wanted in parts]

    @property
    def ahead(self) -> int | None:
        """The step whose heads have run ahead of their turn."""
        return self._next[0] if self._next and all(micro.head for micro in self._next[1]) else None

    def work_ahead(self) -> None:
        """Once all of the step under way was sent, load the batch after it; a head that training does not
        change runs on it.

        What goes wrong shows when its turn comes.
        """
        under_way, step = self._step, self.step + 2
        if under_way is None or step > self.batches.total_steps or self._next is not None:
            return
        if (under_way.tails if self.tail else under_way.heads) == len(under_way.micros):
            with suppress(Exception):
                micros = self._load(step)
                self._next = step, micros
                if self.head.fixed:
                    self._run_heads(step, micros)

    def _run_heads(self, step: int, micros: list[_Micro]) -> None:
        for number, micro in enumerate(micros):
            opened = self.head.forward_ahead(micro.inputs, step=step, micro=number)
            wire = detached(opened.outputs[: self.head.segment.n_wire])
            micro.packed = self.wire.pack_ahead("activations", wire, step=step, micro=number)
            micro.head = opened

    def run_tail(self, packed: Packed, micro: int = 0) -> Packed:
        """Tail, loss and tail backward of a micro-batch, in order: the gradients of the body's outputs."""
        step, tail = self._live()
        part = step.micros[micro]
        assert tail is not None
        assert part.head is not None
        kept = part.head.outputs[self.head.segment.n_wire :]
        inputs = tail.segment.input_values
        specs = inputs[: len(inputs) - len(kept)]
        values = self.wire.unpack("activations", packed, expected_of(specs, part.samples))
        down = check_values(values, specs, samples=part.samples)
        opened = tail.forward((*down, *kept), micro=micro)
        loss = self.job.loss(tensors_of(opened.outputs), part.targets)
        step.loss += float(loss.detach()) * part.share
        backward_from(loss, part.share)
        gradients = tuple(v.grad if isinstance(v, Tensor) else None for v in opened.inputs)
        if self.job.spec.durability.on_non_finite == "stop" and not all_finite(tensors_of(gradients)):
            raise self._not_finite()
        part.kept_gradients = gradients[len(specs) :]
        step.tails = micro + 1
        return self.wire.pack(
            "gradients",
            gradients[: len(specs)],
            step=self.step + 1,
            micro=micro,
            answer="gradients",
            nbytes=step.nbytes,
        )

    def run_head_backward(self, packed: Packed, loss: float | None) -> None:
        """Head backward of the next micro-batch. `loss` is the worker's, if it has it."""
        step, _ = self._live()
        part = step.micros[step.returned]
        assert part.head is not None
        wire = self.head.segment.n_wire
        outputs, kept = part.head.outputs[:wire], part.head.outputs[wire:]
        gradients = self.wire.unpack("gradients", packed, expected_like(outputs))
        checked = check_gradients(gradients, outputs)
        self.head.backward(part.head, (*checked, *(part.kept_gradients or (None,) * len(kept))))
        part.head = None
        step.returned += 1
        step.loss += 0.0 if loss is None else loss * part.share

    def apply(self, packed: Packed, loss: float | None) -> None:
        """Head backward of the last micro-batch, then head and tail step together."""
        self.run_head_backward(packed, loss)
        step, tail = self._live()
        trainers = [self.head] if tail is None else [self.head, tail]
        if not all(trainer.finite() for trainer in trainers):
            raise self._not_finite()
        for trainer in trainers:
            trainer.apply()
        self.wire.packer.apply()
        self.loss, self.samples = step.loss, step.samples
        self._step = None

    def skip(self) -> None:
        """Let the step under way pass without effect."""
        self._step = None
        self.wire.packer.abort()
        self.head.skip()
        if self.tail is not None:
            self.tail.skip()

    def abort(self) -> None:
        """Forget the step under way."""
        self._step = None
        self.wire.packer.abort()
        self.head.abort()
        if self.tail is not None:
            self.tail.abort()

    def eval_head(self, index: int) -> tuple[Packed, int]:
        """The wire values of test batch `index` in evaluation mode, and its size."""
        assert self.tests is not None
        if index == 0:
            self.evaluation = Evaluation()
        inputs, self._targets = self.tests.batch(index, self.step)
        outputs = self.head.evaluate(inputs)
        wire = self.head.eval_wire
        self._kept = outputs[wire:]
        return self.wire.pack_evaluation(outputs[:wire]), inputs[0].shape[0]

    def eval_tail(self, index: int, packed: Packed) -> bool:
        """Add test batch `index` to `evaluation`; whether another batch follows."""
        assert self.tests is not None
        samples = self._targets[0].shape[0]
        self._count(evaluation_outputs(self.job, self.tail, packed, self._kept, samples=samples))
        return index + 1 < len(self.tests)

    def _count(self, outputs: tuple[Value, ...]) -> None:
        tensors = tensors_of(outputs)
        samples = self._targets[0].shape[0]
        result = self.evaluation
        result.samples += samples
        result.loss += float(self.job.loss(tensors, self._targets)) * samples
        if self.job.spec.loss.name in CLASS_LOSSES:
            right = tensors[0].argmax(dim=1) == self._targets[0]
            result.correct += int(right.sum())
            result.counted += right.numel()

    def state(self) -> dict[str, Tensor]:
        """A copy of head, tail and their optimizers after `step`."""
        state = {HEAD + name: tensor for name, tensor in self.head.snapshot().items()}
        state.update(self.wire.packer.state())
        if self.tail is not None:
            state.update({TAIL + name: tensor for name, tensor in self.tail.snapshot().items()})
        return state

    def load_state(self, state: Mapping[str, Tensor], *, step: int) -> None:
        """Take over what `state` gave; raises ValueError where it does not fit."""
        self.abort()
        self._next = None
        self.head.load_state(_under(HEAD, state), step=step)
        self.wire.packer.load_state(state)
        if self.tail is not None:
            self.tail.load_state(_under(TAIL, state), step=step)

    def _bytes_of_step(self, up: Values, samples: int, *, kept: int) -> dict[Travelling, int]:
        """Of what `up` and its answers have before packing; gradients are as large as their values."""
        nbytes = bytes_of(up)
        if self.tail is None:
            return {("up", "activations"): nbytes, ("down", "gradients"): nbytes}
        inputs = self.tail.segment.input_values
        down = bytes_expected(expected_of(inputs[: len(inputs) - kept], samples))
        return {
            ("up", "activations"): nbytes,
            ("down", "activations"): down,
            ("up", "gradients"): down,
            ("down", "gradients"): nbytes,
        }

    def _live(self) -> tuple[_Step, SegmentTrainer | None]:
        assert self._step is not None, "no step is under way"
        return self._step, self.tail

    def _not_finite(self) -> NotFiniteOnDevice:
        self.abort()
        return NotFiniteOnDevice(
            f"a gradient of step {self.step + 1} is NaN or infinite on the device; nothing was applied",
            hint="lower the learning rate, or clip the gradients ([clip] max_norm)",
        )


def end_trainers(
    job: Job, *, device: str, key: Key, ends: Drawn
) -> tuple[SegmentTrainer, SegmentTrainer | None]:
    """Head and tail at step 0."""

    def trainer(segment: Segment, role: str) -> SegmentTrainer:
        return SegmentTrainer(segment.spawn(ends.get(role)), job.spec, device=device, role=role, key=key)

    return trainer(job.head, "head"), trainer(job.tail, "tail") if job.tail else None


def evaluation_outputs(
    job: Job, tail: SegmentTrainer | None, packed: Packed, kept: Values, *, samples: int
) -> tuple[Value, ...]:
    """The model's outputs from the body's, in evaluation mode. Raises DataError."""
    codecs = job.spec.link.codecs["activations"]
    if tail is None:
        expected = [((samples, *spec.shape), DTYPES[spec.dtype]) for spec in job.signature.outputs]
        return unpack(packed, expected, codecs=codecs)
    specs = tail.eval_inputs[: len(tail.eval_inputs) - len(kept)]
    values = unpack(packed, expected_of(specs, samples), codecs=codecs)
    return tail.evaluate((*check_values(values, specs, samples=samples), *kept))


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
