"""The device's half of the training: head, tail, loss, data. Computation only; runs in the torch thread."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TypeVar

import torch
from torch import Tensor

from broker.protocol.messages import SealedSum, Value
from device_agent.session.events import EvalHeadDone, HeadDone
from device_agent.training.budget import Budget
from device_agent.training.codec_policy import StepChoices
from device_agent.training.codec_policy import Values as Travelling
from device_agent.training.cut_codec import DeviceWire
from device_agent.training.data import BatchOrder, EvaluationBatches
from device_agent.training.early_stopping import KEY as STOPPING_KEY
from device_agent.training.early_stopping import EarlyStopping
from device_agent.training.hijack_watch import HijackWatch, may_watch
from device_agent.training.round_place import RoundPlace
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
from spliteasy.errors import DataError, SplitEasyError
from spliteasy.fleet.handover import open_handover, seal_handover
from spliteasy.fleet.parts import averaged_end, like_of_optimizer, rebased
from spliteasy.fleet.sealed import SealedPart, fraction_bits, seal, unseal
from spliteasy.graph.boundary import check_gradients, check_values
from spliteasy.graph.document import DTYPES
from spliteasy.graph.segment import Segment
from spliteasy.job import Job
from spliteasy.job.spec import LOSS
from spliteasy.privacy.defences.transforms import CutTransforms
from spliteasy.privacy.ends import Drawn
from spliteasy.runtime.randomness import Key
from spliteasy.training.metrics import Metric
from spliteasy.training.private_trainer import (
    BodyNoise,
    PrivateTrainer,
    for_the_body,
    row_gradients,
    segment_trainer,
)
from spliteasy.training.segment_trainer import (
    MODEL_PREFIX,
    OPTIMIZER_PREFIX,
    Gradients,
    OpenForward,
    SegmentTrainer,
    Values,
    all_finite,
    backward_from,
    detached,
    misfit,
    model_tensors,
    tensors_of,
)

HEAD, TAIL = "head/", "tail/"
ROUND_KEY = "fleet/round"
SEALED = "sealed"
"""The name of sealed ends, and of their sum."""


class NotFiniteOnDevice(SplitEasyError):
    """A number of head or tail is NaN or infinite; nothing was applied on the device."""


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
class _Micro:
    """A micro-batch of the open step."""

    inputs: Tensors
    targets: Tensors
    share: float
    """The weight of its loss in the batch's."""
    elements: float
    """The elements that the loss's mean over it is over: labelled ones, or samples."""
    head: OpenForward | None = None
    packed: Packed | None = None
    """The head's wire values, where they were packed ahead."""
    order: Tensor | None = None
    """The order in which its tokens cross, where it is not their own."""
    kept_gradients: tuple[Tensor | None, ...] = ()

    @property
    def samples(self) -> int:
        return self.inputs[0].shape[0]


@dataclass(slots=True)
class _Step:
    """An open step: its micro-batches go in order through head, tail and head backward."""

    micros: list[_Micro]
    heads: int = 0
    tails: int = 0
    returned: int = 0
    loss: float = 0.0
    losses: list[float] = field(default_factory=list)
    """The loss of each sample, under DP-SGD."""
    spoiled: str | None = None
    """The name of what is NaN or infinite, where the job lets the step pass without effect."""
    nbytes: dict[Travelling, int] = field(default_factory=dict)
    """The bytes of its first micro-batch's values, before they are packed."""

    @property
    def samples(self) -> int:
        return sum(micro.samples for micro in self.micros)

    @property
    def counted(self) -> float | None:
        """The elements that the loss's mean is over; None where none of them has a label."""
        return sum(micro.elements for micro in self.micros) or None


@dataclass(slots=True)
class DeviceTrainer:
    """Head and tail of one device, after step `head.step`, and the open step."""

    job: Job
    batches: BatchOrder
    tests: EvaluationBatches | None
    head: SegmentTrainer
    tail: SegmentTrainer | None
    wire: DeviceWire
    transforms: CutTransforms
    key: Key
    """The device's for the job."""
    budget: Budget | None = None
    """The budget that DP-SGD has spent."""
    watch: HijackWatch | None = None
    """Judges what comes back; None where the job has nothing to judge it by."""
    loss: float | None = None
    """Training loss of the last step; None where it was not measured: nothing had a label."""
    samples: int = 0
    """Samples of the last step."""
    passed: str | None = None
    """Why the last step passed without effect."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    place: RoundPlace = field(default_factory=RoundPlace)
    """Its place in the rounds of a fleet."""
    round_length: int = 0
    """Steps of a round; 0: there are none."""
    stopping: EarlyStopping | None = None
    """There where an evaluation may end the training."""
    fleet_key: str | None = None
    """The name of the key that the initial ends were drawn from, where devices share one."""
    device: str = ""
    fleet_secret: Key | None = None
    """That key: what is handed in is sealed with it, where the job says so."""
    _initial: dict[str, Tensor] = field(default_factory=dict)
    """The averaged part of the ends as they began."""
    _step: _Step | None = None
    _next: tuple[int, list[_Micro]] | None = None
    """A batch that was loaded ahead, and its step; its heads have run too, where nothing changes them."""
    _targets: tuple[Tensor, ...] = ()
    _kept: Values = ()
    _order: Tensor | None = None
    _length: int | None = None

    @classmethod
    def create(
        cls,
        job: Job,
        batches: BatchOrder,
        tests: EvaluationBatches | None,
        *,
        device: str,
        key: Key,
        ends: Drawn,
        choices: StepChoices,
        stop_if_hijacked: bool = False,
    ) -> DeviceTrainer:
        """Make a trainer with the job's initial weights and the device's own (`ends`), at step 0."""
        head, tail = end_trainers(job, device=device, key=key, ends=ends)
        codecs = job.spec.link.codecs
        wire = DeviceWire(codecs, Packer(codecs, job.spec.seed, device, "up"), choices)
        transforms = CutTransforms(job.spec.privacy, key, head=job.head, tail=job.tail)
        watch = HijackWatch(job, stop=stop_if_hijacked) if may_watch(job) else None
        trainer = cls(job, batches, tests, head, tail, wire, transforms, key, watch=watch, device=device)
        trainer._initial = trainer.averaged_ends()
        if job.spec.evaluation.patience is not None:
            trainer.stopping = EarlyStopping(job.spec.evaluation)
        return trainer

    @property
    def step(self) -> int:
        return self.head.step

    @property
    def taken(self) -> int:
        """Steps that trained, of all steps: what batches, schedule and random layers follow."""
        return self.head.taken

    @property
    def shared_loss(self) -> float | None:
        """The loss of the open step, where the job lets it leave the device; None until all is added."""
        step, _ = self._live()
        whole = step.tails == len(step.micros)
        told = whole and self.job.spec.share_loss and step.counted and isfinite(step.loss)
        return step.loss if told else None

    def run_head(self, step: int, micro: int = 0) -> HeadDone:
        """Run the head on a micro-batch, in order; micro-batch 0 begins `step`.

        Raises NotFiniteOnDevice, and DataError where the batch's own values are not finite.
        """
        step -= self.head.rebases
        if micro == 0:
            self._step = _Step(self._batch(step))
        under_way, tail = self._live()
        part = under_way.micros[micro]
        if part.head is None:
            part.head = self._through_cut(part, self.head.forward(part.inputs, micro=micro), step)
        under_way.heads = micro + 1
        wire = detached(part.head.outputs[: self.head.segment.n_wire])
        self._look(self.head, wire, micro)
        if under_way.spoiled:
            wire, part.packed = tuple(map(_spoilt, wire)), None
        if micro == 0:
            kept = len(part.head.outputs) - len(wire)
            under_way.nbytes = self._bytes_of_step(wire, part, kept=kept)
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
        counted = under_way.counted if len(under_way.micros) > 1 and tail is None else None
        targets = () if tail else part.targets
        return HeadDone(
            packed,
            part.samples,
            targets,
            under_way.samples,
            counted,
            self.job.signature.length_of(part.inputs),
        )

    def _batch(self, step: int) -> list[_Micro]:
        ahead, self._next = self._next, None
        return ahead[1] if ahead is not None and ahead[0] == step else self._load(step)

    def _load(self, step: int) -> list[_Micro]:
        measure, loaded = self.job.measure, self.batches.micro_batches(step)
        parts, wanted = [inputs for inputs, _ in loaded], [targets for _, targets in loaded]
        shares = [0.0] if self.batches.is_empty(step) else measure.shares(wanted)
        elements = [measure.elements(part) for part in wanted]
        return [_Micro(*micro) for micro in zip(parts, wanted, shares, elements, strict=True)]

    @property
    def ahead(self) -> int | None:
        """The step whose heads have run ahead of their turn."""
        return self._next[0] if self._next and all(micro.head for micro in self._next[1]) else None

    def work_ahead(self) -> None:
        """Load the batch after the open step once all of that was sent, and run the head on it if training
        does not change the head.

        What goes wrong shows when its turn comes.
        """
        under_way, step = self._step, self.taken + 2
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
            opened = self._through_cut(micro, opened, step)
            wire = detached(opened.outputs[: self.head.segment.n_wire])
            micro.packed = self.wire.pack_ahead("activations", wire, step=step, micro=number)
            micro.head = opened

    def _through_cut(self, part: _Micro, opened: OpenForward, step: int) -> OpenForward:
        """The head's forward with what crosses the cut as it is sent; its backward begins from there."""
        wire = self.head.segment.n_wire
        clean = opened.outputs[:wire]
        part.order = self.transforms.order(clean, purpose="activations", step=step)
        sent = self.transforms.activations(clean, purpose="activations", step=step, order=part.order)
        return replace(opened, outputs=(*sent, *opened.outputs[wire:]))

    def run_tail(self, packed: Packed, micro: int = 0) -> Packed:
        """Tail, loss and tail backward of a micro-batch, in order: the gradients of the body's outputs."""
        step, tail = self._live()
        part = step.micros[micro]
        assert tail is not None
        assert part.head is not None
        kept = part.head.outputs[self.head.segment.n_wire :]
        inputs = tail.segment.input_values
        specs = inputs[: len(inputs) - len(kept)]
        length = self.job.signature.length_of(part.inputs) or 0
        values = self.wire.unpack("activations", packed, expected_of(specs, part.samples, length))
        checked = check_values(values, specs, samples=part.samples, length=length)
        down = self.transforms.in_order(checked, part.order)
        opened = tail.forward((*down, *kept), micro=micro)
        self._look(tail, opened.outputs, micro)
        if isinstance(tail, PrivateTrainer):
            gradients = self._private_tail(tail, opened, part, step)
        else:
            loss = self.job.loss(tensors_of(opened.outputs), part.targets)
            if part.share and part.elements:
                step.loss += float(loss.detach()) * part.share
                self._refuse_unless(isfinite(step.loss), "the loss")
            backward_from(loss, part.share, self.job.spec.accumulate)
            gradients = tuple(v.grad if isinstance(v, Tensor) else None for v in opened.inputs)
        self._refuse_unless(all_finite(tensors_of(gradients)), "a gradient of the tail's inputs")
        sent = self.transforms.gradients(
            gradients[: len(specs)], part.targets, step=self.taken + 1, order=part.order
        )
        if step.spoiled:
            sent = tuple(None if g is None else _spoilt(g) for g in sent)
        if self.watch is not None:
            self.watch.sends(sent, part.targets[0])
        part.kept_gradients = gradients[len(specs) :]
        step.tails = micro + 1
        return self.wire.pack(
            "gradients", sent, step=self.taken + 1, micro=micro, answer="gradients", nbytes=step.nbytes
        )

    def _private_tail(
        self, tail: PrivateTrainer, opened: OpenForward, part: _Micro, step: _Step
    ) -> Gradients:
        """The gradients of the tail's inputs, each sample's by its own loss."""
        outputs = tensors_of(opened.outputs)
        losses, gradients = row_gradients(self.job.loss, outputs, part.targets, self.job.measure)
        if not part.share:  # nobody was drawn
            losses, gradients = [0.0], [torch.zeros_like(g) for g in gradients]
        step.loss, step.losses = sum(losses) / len(losses), losses
        self._refuse_unless(isfinite(step.loss), "the loss")
        return tail.backward(opened, gradients)

    @property
    def body_noise(self) -> BodyNoise | None:
        """Return what the worker adds to the body's gradients in the open step, or None without DP-SGD."""
        poisson, step = self.batches.poisson, self._step
        if poisson is None or step is None or not isinstance(self.tail, PrivateTrainer):
            return None
        key = self.tail.noise_key(self.key, "body", step.losses)
        return for_the_body(key, poisson.noise_multiplier)

    def run_head_backward(self, packed: Packed, loss: float | None) -> None:
        """Run the head's backward pass of the next micro-batch. `loss` is the worker's, if it has it."""
        step, _ = self._live()
        part = step.micros[step.returned]
        assert part.head is not None
        wire = self.head.segment.n_wire
        outputs, kept = part.head.outputs[:wire], part.head.outputs[wire:]
        gradients = self.wire.unpack("gradients", packed, expected_like(outputs))
        checked = check_gradients(gradients, outputs)
        if self.watch is not None:
            self.watch.gets(checked, part.samples)
        share = part.share / self.job.spec.accumulate
        returned = self.transforms.returned(part.inputs, detached(outputs), checked, share=share)
        self.head.backward(part.head, (*returned, *(part.kept_gradients or (None,) * len(kept))))
        part.head = None
        step.returned += 1
        if loss is not None:
            step.loss += loss * part.share

    def apply(self, packed: Packed, loss: float | None) -> None:
        """Run the head's backward pass of the last micro-batch, then let head and tail step together."""
        self.run_head_backward(packed, loss)
        step, tail = self._live()
        trainers = [self.head] if tail is None else [self.head, tail]
        for trainer in trainers:
            what = trainer.not_finite()
            if what is not None:
                raise self._not_finite(what)
        if self.watch is not None:
            self.watch.judge(self.taken + 1)
        for role, trainer in zip(("head", "tail"), trainers, strict=False):
            if isinstance(trainer, PrivateTrainer) and self.batches.poisson is not None:
                key = trainer.noise_key(self.key, role, step.losses)
                trainer.give_noise(key, self.batches.poisson.noise_multiplier)
            trainer.apply()
        self.wire.packer.apply()
        self.loss, self.samples = step.loss if step.counted else None, step.samples
        self.place = self.place.trained(step.samples)
        self._step = None

    def skip(self) -> None:
        """Let the open step pass without effect; `passed` says why."""
        problem = self.data_problem()
        spoiled = self._step.spoiled if self._step is not None else None
        self.passed = problem.message if problem is not None else spoiled or "a gradient of the body"
        self._step = None
        if self.watch is not None:
            self.watch.forget()
        self.wire.packer.abort()
        self.place = self.place.trained(0)
        self.head.skip()
        if self.tail is not None:
            self.tail.skip()

    def averaged_ends(self) -> dict[str, Tensor]:
        """Return a copy of what of head and tail goes into the mean; nothing where they stay this device's
        own.
        """
        fleet = self.job.spec.fleet
        if not fleet.ends_leave:
            return {}
        return {
            prefix + name: tensor
            for prefix, trainer in self._ends()
            for name, tensor in averaged_end(trainer, fleet).items()
        }

    def hand_in(self, nonce: str) -> dict[str, Tensor]:
        """Return what the round gets of head and tail; nothing where this device comes new.

        Sealed ends are one tensor, under a pad that `nonce` names. Raises DataError for what can't be sealed.
        """
        self.abort()
        place, spec = self.place, self.job.spec
        ends = self.averaged_ends() if place.round and self.whole_round else {}
        if not ends or not spec.fleet.seals:
            return ends
        key = self._sealing_key()
        if spec.fleet.hands_over:
            sealed = seal_handover(ends, key=key, device=self.device, turn=place.round, nonce=nonce)
            return {SEALED: sealed}
        part = SealedPart(self.device, nonce, spec.fleet.weight_of(place.round_samples))
        bits = fraction_bits(spec, place.drawn)
        return {SEALED: seal(ends, part, key=key, round_=place.opened + 1, bits=bits)}

    @property
    def whole_round(self) -> bool:
        """Return whether the device has ended its round; else there are more windows of it."""
        return not self.job.spec.fleet.shares_body or self.place.steps >= self.round_length

    def opened(self, total: Tensor, about: SealedSum) -> dict[str, Tensor]:
        """Return the mean that a sealed sum stands for, or what a device handed over. Raises WrongSum,
        ForeignHandover, DataError.
        """
        if self.job.spec.fleet.hands_over:
            if len(about.addends) != 1:
                raise DataError(f"the worker sent the handover of {len(about.addends)} devices")
            by = about.addends[0]
            key = self._sealing_key()
            return open_handover(total, key=key, device=by.device, turn=about.round, nonce=by.nonce)
        parts = [SealedPart(each.device, each.nonce, each.weight) for each in about.addends]
        bits, key = fraction_bits(self.job.spec, about.drawn), self._sealing_key()
        return unseal(total, parts, self._initial, key=key, round_=about.round, bits=bits)

    def _sealing_key(self) -> Key:
        assert self.fleet_secret is not None, "a device without the fleet's key does not begin"
        return self.fleet_secret.at("seal")

    def take_mean(
        self,
        mean: Mapping[str, Tensor] | None,
        *,
        round_: int,
        drawn: int,
        opened: int | None = None,
        kept: bool = False,
        scheduled: int | None = None,
    ) -> None:
        """Go on from the mean of round `round_`; None: from the ends as they began, or as they are (`kept`).

        `opened`: the record that began the round under way, where that is not `round_`; `scheduled`: the
        steps that the schedule goes on from, where these are not the device's own. Raises DataError where it
        is not a mean of these ends.
        """
        self.abort()
        fleet = self.job.spec.fleet
        began = round_ if opened is None else opened
        self.place = self.place.gone_on(round_, opened=began, drawn=drawn, kept=kept)
        if kept:
            for _, trainer in self._ends():
                trainer.rebase(None, scheduled=scheduled)
            return
        tensors = self._initial if mean is None else mean
        self._check_mean(tensors)
        for prefix, trainer in self._ends():
            own = _under(prefix, tensors)
            state = rebased(trainer.snapshot(), own, fleet) if fleet.ends_leave else None
            trainer.rebase(state, scheduled=scheduled)

    def _ends(self) -> list[tuple[str, SegmentTrainer]]:
        return [(HEAD, self.head)] if self.tail is None else [(HEAD, self.head), (TAIL, self.tail)]

    def _check_mean(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise DataError unless the mean has the weights of these ends, in their shapes, and no NaN."""
        expected = self._initial
        weights = {name: tensor for name, tensor in tensors.items() if MODEL_PREFIX in name}
        if weights.keys() != expected.keys():
            raise DataError("the worker sent a mean of other tensors than this device's head and tail have")
        for name, tensor in tensors.items():
            like = expected.get(name)
            if OPTIMIZER_PREFIX in name:
                like = like_of_optimizer(name, expected, self.job.spec)
                if like is None:
                    raise DataError(f"the worker sent {name}, which no optimizer of this device keeps")
            if like is not None and (tensor.shape != like.shape or tensor.dtype != like.dtype):
                raise DataError(f"the mean of {name} has another shape or type than this device's own")
            if tensor.is_floating_point() and not all_finite([tensor]):
                raise DataError(f"the mean of {name} has numbers that are not finite; nothing was changed")

    def abort(self) -> None:
        """Forget the open step."""
        self._step = None
        if self.watch is not None:
            self.watch.forget()
        self.wire.packer.abort()
        self.head.abort()
        if self.tail is not None:
            self.tail.abort()

    def eval_head(self, index: int) -> EvalHeadDone:
        """Run the head on test batch `index` in evaluation mode."""
        assert self.tests is not None
        if index == 0:
            self.evaluation = Evaluation(gathered=self.job.metrics())
        inputs, self._targets = self.tests.batch(index, self.step)
        outputs = self.head.evaluate(inputs)
        wire = self.head.eval_wire
        self._kept = outputs[wire:]
        self._order = self.transforms.order(outputs[:wire], purpose="evaluation", step=self.step)
        sent = self.transforms.activations(
            outputs[:wire], purpose="evaluation", step=self.step, order=self._order
        )
        self._length = self.job.signature.length_of(inputs)
        return EvalHeadDone(self.wire.pack_evaluation(sent), inputs[0].shape[0], self._length)

    def eval_tail(self, index: int, packed: Packed) -> bool:
        """Add test batch `index` to `evaluation`, and return whether another batch follows."""
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
        self._count(made, index)
        more = index + 1 < len(self.tests)
        if not more and self.stopping is not None:
            self.stopping.judge(self.step, self.evaluation.number(self.job.spec.evaluation.chosen_by))
        return more

    def _count(self, outputs: tuple[Value, ...], index: int) -> None:
        tensors, measure, result = tensors_of(outputs), self.job.measure, self.evaluation
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
        inputs, targets = self.tests.batch(index, self.step)
        problem = self.tests.problem(inputs, targets, self.tests.indices(index, self.step))
        if problem is not None:
            raise problem

    def state(self) -> dict[str, Tensor]:
        """A copy of head, tail and their optimizers after `step`."""
        state = {HEAD + name: tensor for name, tensor in self.head.snapshot().items()}
        state.update(self.wire.packer.state())
        if self.tail is not None:
            state.update({TAIL + name: tensor for name, tensor in self.tail.snapshot().items()})
        if self.stopping is not None:
            state[STOPPING_KEY] = self.stopping.state()
        if self.job.spec.fleet.has_rounds:
            state[ROUND_KEY] = self.place.as_tensor()
        return state

    def misfit(self, state: Mapping[str, Tensor]) -> str | None:
        """Why head or tail can't take the weights of `state`, for a person; None where they can."""
        for prefix, trainer in ((HEAD, self.head), (TAIL, self.tail)):
            given = model_tensors(_under(prefix, state))
            why = misfit({} if trainer is None else trainer.segment.state_dict(), given)
            if why is not None:
                return why
        return None

    def load_state(self, state: Mapping[str, Tensor], *, step: int) -> None:
        """Take over what `state` gave; raises ValueError where it does not fit."""
        self.abort()
        self._next = None
        self.head.load_state(_under(HEAD, state), step=step)
        self.wire.packer.load_state(state)
        if self.tail is not None:
            self.tail.load_state(_under(TAIL, state), step=step)
        if self.stopping is not None:
            self.stopping.load_state(state.get(STOPPING_KEY))
        self.place = RoundPlace.of(state.get(ROUND_KEY))

    def _bytes_of_step(self, up: Values, part: _Micro, *, kept: int) -> dict[Travelling, int]:
        """Return the bytes of `up` and its answers before packing; gradients are as large as their values."""
        nbytes = bytes_of(up)
        if self.tail is None:
            return {("up", "activations"): nbytes, ("down", "gradients"): nbytes}
        inputs = self.tail.segment.input_values
        length = self.job.signature.length_of(part.inputs) or 0
        down = bytes_expected(expected_of(inputs[: len(inputs) - kept], part.samples, length))
        return {
            ("up", "activations"): nbytes,
            ("down", "activations"): down,
            ("up", "gradients"): down,
            ("down", "gradients"): nbytes,
        }

    def _live(self) -> tuple[_Step, SegmentTrainer | None]:
        assert self._step is not None, "no step is open"
        return self._step, self.tail

    def data_problem(self) -> DataError | None:
        """Say what is NaN or infinite in the data of the open step, by sample, or None where all
        is finite."""
        if self._step is None:
            return None
        number = self.taken + 1
        inputs, targets = self.batches.batch(number)
        return self.batches.problem(inputs, targets, self.batches.indices(number))

    def _look(self, trainer: SegmentTrainer, outputs: Values, micro: int) -> None:
        """Refuse what a forward made: NaN among its outputs, or running statistics that are no numbers.

        Infinite outputs pass: masks and impossible classes are made of them.
        """
        role = trainer.segment.name
        self._refuse_unless(all(map(has_no_nan, tensors_of(outputs))), f"an output of the {role}")
        what = trainer.spoiled_buffer()
        self._refuse_unless(what is None, what or "")

    def _refuse_unless(self, finite: bool, what: str) -> None:
        """Stop where something is not finite; where the job lets such a step pass, mark it."""
        if finite:
            return
        if self.job.spec.durability.on_non_finite == "stop":
            raise self._not_finite(what)
        step, _ = self._live()
        step.spoiled = step.spoiled or what

    def _not_finite(self, what: str) -> SplitEasyError:
        """Return the error for it: the data is to blame where it is not finite itself."""
        problem = self.data_problem()
        self.abort()
        return problem or NotFiniteOnDevice(
            f"{what} is NaN or infinite in step {self.taken + 1} on the device; nothing was applied",
            hint="the data is finite: lower the learning rate, or clip the gradients ([clip] max_norm)",
        )


def end_trainers(
    job: Job, *, device: str, key: Key, ends: Drawn
) -> tuple[SegmentTrainer, SegmentTrainer | None]:
    """Return head and tail at step 0."""

    def trainer(segment: Segment, role: str) -> SegmentTrainer:
        return segment_trainer(segment.spawn(ends.get(role)), job.spec, device=device, role=role, key=key)

    return trainer(job.head, "head"), trainer(job.tail, "tail") if job.tail else None


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


def has_no_nan(tensor: Tensor) -> bool:
    """Return whether no element is NaN."""
    return not tensor.is_floating_point() or all_finite([tensor]) or not bool(tensor.isnan().any())


_AnyValue = TypeVar("_AnyValue", Tensor, Tensor | int)


def _spoilt(value: _AnyValue) -> _AnyValue:
    """NaN in place of every number, which tells the worker that the step is to pass without effect."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.full_like(value, float("nan"))
    return value


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
