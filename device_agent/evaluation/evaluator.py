"""Evaluation on the device's own test data: the head before the cut, the tail behind it, and the counting."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

from torch import Tensor

from broker.protocol.messages import Value
from device_agent.evaluation.early_stopping import EarlyStopping
from device_agent.training.cut_codec import DeviceWire
from device_agent.training.data import EvaluationBatches
from spliteasy.codecs.packer import Packed, expected_of, unpack
from spliteasy.graph.boundary import check_values
from spliteasy.graph.document import DTYPES
from spliteasy.job import Job
from spliteasy.job.spec import LOSS
from spliteasy.privacy.defences.transforms import CutTransforms
from spliteasy.training.metrics import Metric
from spliteasy.training.segment_trainer import SegmentTrainer, Values, all_finite, tensors_of


@dataclass(slots=True)
class Evaluation:
    """Sums over the test samples so far."""

    samples: int = 0
    loss: float = 0.0
    elements: float = 0.0
    """The elements that the loss's mean is over: labelled ones, or samples."""
    correct: int = 0
    counted: int = 0
    """Predictions that were right or wrong; 0 where the loss does not classify, or nothing has a label."""
    judged: bool = True
    """The predictions of every batch could be judged."""
    finite: bool = True
    """No output of any batch was NaN."""
    gathered: dict[str, Metric] = field(default_factory=dict)
    """The metrics that the job names."""

    @property
    def mean_loss(self) -> float | None:
        """None where no element has a label."""
        return self.loss / self.elements if self.elements else None

    @property
    def accuracy(self) -> float | None:
        """None where it can't be measured."""
        return self.correct / self.counted if self.judged and self.counted else None

    def number(self, name: str) -> float | None:
        """The loss, or the metric of that name; None where it was not measured."""
        return self.mean_loss if name == LOSS else self.metrics[name]

    @property
    def metrics(self) -> dict[str, float | None]:
        """The metrics that the job names; None where they can't be measured, as with NaN among outputs."""
        return {name: metric.value() if self.finite else None for name, metric in self.gathered.items()}


@dataclass(slots=True)
class Evaluator:
    """The evaluation under way, batch by batch, and what it may decide: the end of the training."""

    job: Job
    tests: EvaluationBatches | None
    """The test data; None where this device has none."""
    head: SegmentTrainer
    tail: SegmentTrainer | None
    wire: DeviceWire
    transforms: CutTransforms
    stopping: EarlyStopping | None = None
    """There where an evaluation may end the training."""
    result: Evaluation = field(default_factory=Evaluation)
    """The sums of the last evaluation."""
    _targets: tuple[Tensor, ...] = ()
    _kept: Values = ()
    _order: Tensor | None = None

    def head_values(self, index: int) -> tuple[Packed, int]:
        """The wire values of test batch `index` in evaluation mode, and its size."""
        assert self.tests is not None
        if index == 0:
            self.result = Evaluation(gathered=self.job.metrics())
        inputs, self._targets = self.tests.batch(index, self.head.step)
        outputs = self.head.evaluate(inputs)
        wire = self.head.eval_wire
        self._kept = outputs[wire:]
        self._order = self.transforms.order(outputs[:wire], purpose="evaluation", step=self.head.step)
        sent = self.transforms.activations(
            outputs[:wire], purpose="evaluation", step=self.head.step, order=self._order
        )
        return self.wire.pack_evaluation(sent), inputs[0].shape[0]

    def take_outputs(self, index: int, packed: Packed) -> bool:
        """Add test batch `index` to `result`, and return whether another batch follows."""
        assert self.tests is not None
        samples = self._targets[0].shape[0]
        made = evaluation_outputs(self.job, self.tail, packed, self._kept, samples=samples, order=self._order)
        self._count(made, index)
        more = index + 1 < len(self.tests)
        if not more and self.stopping is not None:
            self.stopping.judge(self.head.step, self.result.number(self.job.spec.evaluation.chosen_by))
        return more

    def _count(self, outputs: tuple[Value, ...], index: int) -> None:
        tensors, measure, result = tensors_of(outputs), self.job.measure, self.result
        elements = measure.elements(self._targets)
        result.samples += self._targets[0].shape[0]
        if elements:
            loss = float(self.job.loss(tensors, self._targets))
            if not isfinite(loss) and self.job.spec.durability.on_non_finite == "stop":
                self._check_test_batch(index)
            result.elements += elements
            result.loss += loss * elements
        finite = all(map(has_no_nan, tensors))
        result.finite = result.finite and finite
        for name, metric in result.gathered.items() if finite else ():
            given = (
                tensors[: len(self.job.signature.outputs)] if name in self.job.metric_functions else tensors
            )
            metric.add(given, self._targets)
        right = measure.right(tensors, self._targets) if finite else None
        result.judged = result.judged and right is not None
        if right is not None:
            result.correct += right[0]
            result.counted += right[1]

    def _check_test_batch(self, index: int) -> None:
        """Raise DataError where the test batch itself is not finite: the model is not to blame then."""
        assert self.tests is not None
        inputs, targets = self.tests.batch(index, self.head.step)
        problem = self.tests.problem(inputs, targets, self.tests.indices(index, self.head.step))
        if problem is not None:
            raise problem


def evaluation_outputs(
    job: Job,
    tail: SegmentTrainer | None,
    packed: Packed,
    kept: Values,
    *,
    samples: int,
    order: Tensor | None = None,
) -> tuple[Value, ...]:
    """The model's outputs from the body's, in evaluation mode. Raises DataError.

    `order`: the one in which tokens went to the body, where it is not their own.
    """
    codecs = job.spec.link.codecs["activations"]
    if tail is None:
        expected = [((samples, *spec.shape), DTYPES[spec.dtype]) for spec in job.signature.outputs]
        return unpack(packed, expected, codecs=codecs)
    specs = tail.eval_inputs[: len(tail.eval_inputs) - len(kept)]
    values = unpack(packed, expected_of(specs, samples), codecs=codecs)
    down = CutTransforms.in_order(check_values(values, specs, samples=samples), order)
    return tail.evaluate((*down, *kept))


def has_no_nan(tensor: Tensor) -> bool:
    """Return whether no element is NaN."""
    return not tensor.is_floating_point() or all_finite([tensor]) or not bool(tensor.isnan().any())
