"""The device's half of the training: head, tail, loss, data. Computation only; runs in the torch thread."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from torch import Tensor

from broker.messages import Value
from device_agent.data import Batches, EvaluationBatches
from device_agent.samples import Tensors
from spliteasy.boundary import check_gradients, check_values
from spliteasy.errors import SplitEasyError
from spliteasy.job import Job
from spliteasy.losses import CLASS_LOSSES
from spliteasy.packing import Packed, Packer, Place, expected_like, expected_of, unpack
from spliteasy.portable.graph import DTYPES
from spliteasy.training import (
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
class _Step:
    """A step that is under way on the device."""

    head: OpenForward
    targets: tuple[Tensor, ...]
    kept: Values
    """Head values that only the tail uses: they stay here."""
    kept_gradients: tuple[Tensor | None, ...] = ()
    samples: int = 0
    loss: float = float("nan")


@dataclass(slots=True)
class DeviceTrainer:
    """Head and tail of one device, after step `head.step`, and the step under way."""

    job: Job
    batches: Batches
    tests: EvaluationBatches | None
    head: SegmentTrainer
    tail: SegmentTrainer | None
    packer: Packer
    loss: float = float("nan")
    """Training loss of the last step."""
    samples: int = 0
    """Samples of the last step."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    _step: _Step | None = None
    _next: tuple[int, tuple[Tensors, Tensors]] | None = None
    """A batch that was loaded ahead, and its step."""
    _targets: tuple[Tensor, ...] = ()
    _kept: Values = ()

    @classmethod
    def create(
        cls, job: Job, batches: Batches, tests: EvaluationBatches | None, *, device: str
    ) -> DeviceTrainer:
        """With the job's initial weights, at step 0."""
        head = SegmentTrainer(job.head.spawn(), job.spec, device=device, role="head")
        tail = SegmentTrainer(job.tail.spawn(), job.spec, device=device, role="tail") if job.tail else None
        link = job.spec.link
        codecs: dict[Place, str] = {"activations": link.activations, "gradients": link.gradients}
        return cls(job, batches, tests, head, tail, Packer(codecs, job.spec.seed, device, "up"))

    @property
    def step(self) -> int:
        return self.head.step

    def run_head(self, step: int) -> tuple[Packed, int, tuple[Tensor, ...]]:
        """The wire values of `step`, the batch size and, with shared labels, the targets."""
        ahead, self._next = self._next, None
        inputs, targets = ahead[1] if ahead and ahead[0] == step else self.batches.batch(step)
        opened = self.head.forward(inputs)
        wire = self.head.segment.n_wire
        samples = inputs[0].shape[0]
        self._step = _Step(opened, targets, opened.outputs[wire:], samples=samples)
        packed = self.packer.pack("activations", detached(opened.outputs[:wire]), step=step)
        return packed, samples, () if self.tail else targets

    def load_ahead(self) -> None:
        """Load the batch after that of the step under way. What goes wrong shows when its turn comes."""
        step = self.step + 2
        if step <= self.batches.total_steps:
            with suppress(Exception):
                self._next = (step, self.batches.batch(step))

    def run_tail(self, packed: Packed) -> Packed:
        """Tail, loss and tail backward; returns the gradients of the body's outputs."""
        step, tail = self._live()
        assert tail is not None
        inputs = tail.segment.input_values
        specs = inputs[: len(inputs) - len(step.kept)]
        link = self.job.spec.link
        values = unpack(packed, expected_of(specs, step.samples), codec=link.activations)
        down = check_values(values, specs, samples=step.samples)
        opened = tail.forward((*down, *step.kept))
        loss = self.job.loss(tensors_of(opened.outputs), step.targets)
        step.loss = float(loss.detach())
        backward_from(loss)
        gradients = tuple(v.grad if isinstance(v, Tensor) else None for v in opened.inputs)
        if self.job.spec.durability.on_non_finite == "stop" and not all_finite(tensors_of(gradients)):
            raise self._not_finite()
        step.kept_gradients = gradients[len(specs) :]
        return self.packer.pack("gradients", gradients[: len(specs)], step=self.step + 1)

    def apply(self, packed: Packed, loss: float | None) -> None:
        """Head backward, then head and tail step together."""
        step, tail = self._live()
        wire = self.head.segment.n_wire
        outputs = step.head.outputs[:wire]
        gradients = unpack(packed, expected_like(outputs), codec=self.job.spec.link.gradients)
        checked = check_gradients(gradients, outputs)
        self.head.backward(step.head, (*checked, *(step.kept_gradients or (None,) * len(step.kept))))
        trainers = [self.head] if tail is None else [self.head, tail]
        if not all(trainer.finite() for trainer in trainers):
            raise self._not_finite()
        for trainer in trainers:
            trainer.apply()
        self.packer.apply()
        self.loss = step.loss if loss is None else loss
        self.samples = step.samples
        self._step = None

    def skip(self) -> None:
        """Let the step under way pass without effect."""
        self._step = None
        self.packer.abort()
        self.head.skip()
        if self.tail is not None:
            self.tail.skip()

    def abort(self) -> None:
        """Forget the step under way."""
        self._step = None
        self.packer.abort()
        self.head.abort()
        if self.tail is not None:
            self.tail.abort()

    def eval_head(self, index: int) -> tuple[Packed, int]:
        """The wire values of test batch `index` in evaluation mode, and its size."""
        assert self.tests is not None
        if index == 0:
            self.evaluation = Evaluation()
        inputs, self._targets = self.tests.batch(index)
        outputs = self.head.evaluate(inputs)
        wire = self.head.eval_wire
        self._kept = outputs[wire:]
        return self.packer.pack_evaluation(outputs[:wire]), inputs[0].shape[0]

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
        state.update(self.packer.state())
        if self.tail is not None:
            state.update({TAIL + name: tensor for name, tensor in self.tail.snapshot().items()})
        return state

    def load_state(self, state: Mapping[str, Tensor], *, step: int) -> None:
        """Take over what `state` gave; raises ValueError where it does not fit."""
        self.abort()
        self.head.load_state(_under(HEAD, state), step=step)
        self.packer.load_state(state)
        if self.tail is not None:
            self.tail.load_state(_under(TAIL, state), step=step)

    def _live(self) -> tuple[_Step, SegmentTrainer | None]:
        assert self._step is not None, "no step is under way"
        return self._step, self.tail

    def _not_finite(self) -> NotFiniteOnDevice:
        self.abort()
        return NotFiniteOnDevice(
            f"a gradient of step {self.step + 1} is NaN or infinite on the device; nothing was applied",
            hint="lower the learning rate, or clip the gradients ([clip] max_norm)",
        )


def evaluation_outputs(
    job: Job, tail: SegmentTrainer | None, packed: Packed, kept: Values, *, samples: int
) -> tuple[Value, ...]:
    """The model's outputs from the body's, in evaluation mode. Raises DataError."""
    codec = job.spec.link.activations
    if tail is None:
        expected = [((samples, *spec.shape), DTYPES[spec.dtype]) for spec in job.signature.outputs]
        return unpack(packed, expected, codec=codec)
    specs = tail.eval_inputs[: len(tail.eval_inputs) - len(kept)]
    values = unpack(packed, expected_of(specs, samples), codec=codec)
    return tail.evaluate((*check_values(values, specs, samples=samples), *kept))


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
