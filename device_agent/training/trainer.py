"""The device's half of the training: head, tail, loss, data. Computation only; runs in the torch thread."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from typing import TypeVar

import torch
from torch import Tensor

from device_agent.evaluation.best_evaluation import KEY as BEST_KEY
from device_agent.evaluation.best_evaluation import BestEvaluation
from device_agent.evaluation.evaluator import Evaluator
from device_agent.evaluation.sums import has_no_nan
from device_agent.rounds.ends import RoundEnds
from device_agent.rounds.place import RoundPlace
from device_agent.session.events import HeadDone
from device_agent.training.budget import Budget
from device_agent.training.codec_policy import StepChoices
from device_agent.training.codec_policy import Values as Travelling
from device_agent.training.cut_codec import DeviceWire, rows_come_again
from device_agent.training.data import BatchOrder, EvaluationBatches
from device_agent.training.hijack_watch import HijackWatch, may_watch
from device_agent.training.open_step import MicroBatch, OpenStep
from spliteasy.codecs.packer import Packed, Packer, bytes_expected, bytes_of, expected_like, expected_of
from spliteasy.errors import DataError, SplitEasyError
from spliteasy.graph.boundary import check_gradients, check_values
from spliteasy.graph.segment import Segment
from spliteasy.job import Job
from spliteasy.privacy.defences.transforms import CutTransforms
from spliteasy.privacy.ends import Drawn
from spliteasy.runtime.randomness import Key
from spliteasy.training.private_trainer import (
    BodyNoise,
    PrivateTrainer,
    for_the_body,
    row_gradients,
    segment_trainer,
)
from spliteasy.training.segment_trainer import (
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
    under,
)

HEAD, TAIL = "head/", "tail/"
ROUND_KEY = "fleet/round"


class NotFiniteOnDevice(SplitEasyError):
    """A number of head or tail is NaN or infinite; nothing was applied on the device."""


@dataclass(slots=True)
class DeviceTrainer:
    """Head and tail of one device, after step `head.step`, and the open step."""

    job: Job
    batches: BatchOrder
    head: SegmentTrainer
    tail: SegmentTrainer | None
    wire: DeviceWire
    transforms: CutTransforms
    key: Key
    """The device's for the job."""
    evaluator: Evaluator
    """Evaluates on this device's test data."""
    rounds: RoundEnds
    """Head and tail in the rounds of a fleet."""
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
    names_rows: bool = False
    """The head gives each sample's values again in the next epoch, and the worker may keep them."""
    _step: OpenStep | None = None
    _next: tuple[int, list[MicroBatch]] | None = None
    """A batch that was loaded ahead, and its step; its heads have run too, where nothing changes them."""

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
        judged = job.spec.evaluation
        best = BestEvaluation(judged, job.digest) if judged.judges else None
        evaluator = Evaluator(job, tests, head, tail, wire, transforms, best)
        named = [(HEAD, head)] if tail is None else [(HEAD, head), (TAIL, tail)]
        rounds = RoundEnds(job, device, named)
        return cls(
            job,
            batches,
            head,
            tail,
            wire,
            transforms,
            key,
            evaluator,
            rounds,
            watch=watch,
            names_rows=rows_come_again(job.spec, head),
        )

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

    @property
    def told_accuracy(self) -> float | None:
        """The accuracy that was measured last, where the job lets it leave the device; None before."""
        return self.evaluator.result.accuracy if self.job.spec.share_loss else None

    def run_head(self, step: int, micro: int = 0) -> HeadDone:
        """Run the head on a micro-batch, in order; micro-batch 0 begins `step`.

        Raises NotFiniteOnDevice, and DataError where the batch's own values are not finite.
        """
        step -= self.head.rebases
        if micro == 0:
            self._step = OpenStep(self._batch(step))
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
        length = self.job.signature.length_of(part.inputs)
        targets = () if tail else part.targets
        return HeadDone(packed, part.samples, targets, under_way.samples, counted, length=length)

    def _batch(self, step: int) -> list[MicroBatch]:
        ahead, self._next = self._next, None
        return ahead[1] if ahead is not None and ahead[0] == step else self._load(step)

    def _load(self, step: int) -> list[MicroBatch]:
        measure, loaded = self.job.measure, self.batches.micro_batches(step)
        parts, wanted = [inputs for inputs, _ in loaded], [targets for _, targets in loaded]
        shares = [0.0] if self.batches.is_empty(step) else measure.shares(wanted)
        elements = [measure.elements(part) for part in wanted]
        return [MicroBatch(*micro) for micro in zip(parts, wanted, shares, elements, strict=True)]

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

    def _run_heads(self, step: int, micros: list[MicroBatch]) -> None:
        for number, micro in enumerate(micros):
            opened = self.head.forward_ahead(micro.inputs, step=step, micro=number)
            opened = self._through_cut(micro, opened, step)
            wire = detached(opened.outputs[: self.head.segment.n_wire])
            micro.packed = self.wire.pack_ahead("activations", wire, step=step, micro=number)
            micro.head = opened

    def _through_cut(self, part: MicroBatch, opened: OpenForward, step: int) -> OpenForward:
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
        samples, length = part.samples, self.job.signature.length_of(part.inputs) or 0
        values = self.wire.unpack("activations", packed, expected_of(specs, samples, length))
        checked = check_values(values, specs, samples=samples, length=length)
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
        self, tail: PrivateTrainer, opened: OpenForward, part: MicroBatch, step: OpenStep
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
        self.rounds.place = self.rounds.place.trained(step.samples)
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
        self.rounds.place = self.rounds.place.trained(0)
        self.head.skip()
        if self.tail is not None:
            self.tail.skip()

    def abort(self) -> None:
        """Forget the open step."""
        self._step = None
        if self.watch is not None:
            self.watch.forget()
        self.wire.packer.abort()
        self.head.abort()
        if self.tail is not None:
            self.tail.abort()

    def state(self) -> dict[str, Tensor]:
        """A copy of head, tail and their optimizers after `step`."""
        state = {HEAD + name: tensor for name, tensor in self.head.snapshot().items()}
        state.update(self.wire.packer.state())
        if self.tail is not None:
            state.update({TAIL + name: tensor for name, tensor in self.tail.snapshot().items()})
        if self.evaluator.best is not None:
            state[BEST_KEY] = self.evaluator.best.state()
        if self.job.spec.fleet.has_rounds:
            state[ROUND_KEY] = self.rounds.place.as_tensor()
        return state

    @property
    def ended(self) -> bool:
        """Return whether the training has ended at this step: by its evaluations, or it has gone back here
        from its end. One that is to take more steps than it had then goes on."""
        best = self.evaluator.best
        if best is None or best.judged != self.step:
            return False
        return best.finished or 0 < self.batches.total_steps <= best.ended

    def best_at_the_end(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the best step's `state` as the training ends with it."""
        assert self.evaluator.best is not None
        return {**state, BEST_KEY: self.evaluator.best.at_the_end(self.batches.total_steps).state()}

    def misfit(self, state: Mapping[str, Tensor]) -> str | None:
        """Why head or tail can't take the weights of `state`, for a person; None where they can."""
        for prefix, trainer in ((HEAD, self.head), (TAIL, self.tail)):
            given = model_tensors(under(prefix, state))
            why = misfit({} if trainer is None else trainer.segment.state_dict(), given)
            if why is not None:
                return why
        return None

    def load_state(self, state: Mapping[str, Tensor], *, step: int) -> None:
        """Take over what `state` gave; raises ValueError where it does not fit."""
        self.abort()
        self._next = None
        self.head.load_state(under(HEAD, state), step=step)
        self.wire.packer.load_state(state)
        if self.tail is not None:
            self.tail.load_state(under(TAIL, state), step=step)
        if self.evaluator.best is not None:
            self.evaluator.best.load_state(state.get(BEST_KEY))
        self.rounds.place = RoundPlace.of(state.get(ROUND_KEY))

    def _bytes_of_step(self, up: Values, part: MicroBatch, *, kept: int) -> dict[Travelling, int]:
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

    def _live(self) -> tuple[OpenStep, SegmentTrainer | None]:
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


_AnyValue = TypeVar("_AnyValue", Tensor, Tensor | int)


def _spoilt(value: _AnyValue) -> _AnyValue:
    """NaN in place of every number, which tells the worker that the step is to pass without effect."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.full_like(value, float("nan"))
    return value
