"""Evaluation on the device's own test data: the head before the cut, the tail behind it, and the counting."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from broker.protocol.messages import Value
from device_agent.evaluation.best_evaluation import BestEvaluation
from device_agent.evaluation.sums import Evaluation
from device_agent.session.events import EvalHeadDone
from device_agent.training.cut_codec import DeviceWire
from device_agent.training.data import EvaluationBatches
from spliteasy.codecs.packer import Packed, expected_of, unpack
from spliteasy.graph.boundary import check_values
from spliteasy.graph.document import DTYPES
from spliteasy.job import Job
from spliteasy.privacy.defences.transforms import CutTransforms
from spliteasy.training.segment_trainer import SegmentTrainer, Values, tensors_of


@dataclass(slots=True)
class Evaluator:
    """The evaluation under way, batch by batch, and what it may decide: the end of the training, or
    which step is its best."""

    job: Job
    tests: EvaluationBatches | None
    """The test data; None where this device has none."""
    head: SegmentTrainer
    tail: SegmentTrainer | None
    wire: DeviceWire
    transforms: CutTransforms
    best: BestEvaluation | None = None
    """There where something follows from which evaluation is the best."""
    result: Evaluation = field(default_factory=Evaluation)
    """The sums of the last evaluation."""
    _targets: tuple[Tensor, ...] = ()
    _kept: Values = ()
    _order: Tensor | None = None
    _length: int | None = None

    def head_values(self, index: int) -> EvalHeadDone:
        """Run the head on test batch `index` in evaluation mode."""
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
        self._length = self.job.signature.length_of(inputs)
        return EvalHeadDone(self.wire.pack_evaluation(sent), inputs[0].shape[0], self._length)

    def take_outputs(self, index: int, packed: Packed) -> bool:
        """Add test batch `index` to `result`, and return whether another batch follows."""
        assert self.tests is not None
        samples = self._targets[0].shape[0]
        made = evaluation_outputs(
            self.job,
            self.tail,
            packed,
            self._kept,
            samples=samples,
            length=self._length or 0,
            order=self._order,
        )
        finite = self.result.add(self.job, tensors_of(made), self._targets)
        if not finite and self.job.spec.durability.on_non_finite == "stop":
            self._check_test_batch(index)
        more = index + 1 < len(self.tests)
        if not more and self.best is not None:
            self.best.judge(self.head.step, self.result.number(self.job.spec.evaluation.chosen_by))
        return more

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
    length: int = 0,
    order: Tensor | None = None,
) -> tuple[Value, ...]:
    """The model's outputs from the body's, in evaluation mode. Raises DataError.

    `length`: that to which the samples are padded, where they have one. `order`: the one in which tokens went
    to the body, where it is not their own.
    """
    codecs = job.spec.link.codecs["activations"]
    if tail is None:
        expected = [((samples, *spec.shape_at(length)), DTYPES[spec.dtype]) for spec in job.signature.outputs]
        return unpack(packed, expected, codecs=codecs)
    specs = tail.eval_inputs[: len(tail.eval_inputs) - len(kept)]
    values = unpack(packed, expected_of(specs, samples, length), codecs=codecs)
    down = CutTransforms.in_order(check_values(values, specs, samples=samples, length=length), order)
    return tail.evaluate((*down, *kept))
