"""The plain program of one body that several devices train at once.

    for each window w, in order:
        for each device i of w:  one batch through its own ends and the common body; its ends step
        body: one step by Σ n_i · gradient_i / Σ n_i; running statistics likewise  (w is void: nothing moves)
        where w ends a round: the ends of those that ended it become their mean    (or stay each device's own)

With windows of one device that is SplitFed V2. Which devices a window has, and where each began its windows,
was decided in the run and is on record; all else the program computes itself, from the user's own model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from spliteasy.errors import SplitEasyError
from spliteasy.fleet.mean import weighted_mean
from spliteasy.fleet.parts import is_averaged, norm_layers, rebased
from spliteasy.fleet.program import PlainDevice, tensor_of
from spliteasy.fleet.record import HandedIn, RoundRecord
from spliteasy.fleet.sealed import fixed_mean, fraction_bits
from spliteasy.job import Job
from spliteasy.training.reference import PlainTraining, State
from spliteasy.training.segment_trainer import GRADIENT_PREFIX, MODEL_PREFIX


class SharedProgram:
    """The devices, by name, and a training whose body is the common one; `run` trains them."""

    def __init__(self, job: Job, devices: Mapping[str, PlainDevice], common: PlainTraining) -> None:
        self._spec, self._fleet = job.spec, job.spec.fleet
        self._common = common
        self._devices = dict(sorted(devices.items()))
        self._body = set(job.body.state_dict())
        self._weights = [name for name, weight in job.body.named_parameters() if weight.requires_grad]
        parameters = {name for name, _ in job.body.named_parameters()}
        self._buffers = {MODEL_PREFIX + name for name in self._body - parameters}
        ends = [segment for segment in (job.head, job.tail) if segment is not None]
        self._ends = {name for segment in ends for name in segment.state_dict()}
        self._steps = 0
        self._opened: dict[str, int] = {}
        """The record that began the round of each device."""
        self._made: dict[str, State] = {}
        """The gradients and buffers of each device's newest batch."""
        self._samples: dict[str, int] = {}
        """Samples of each device in its round."""

    def run(self, records: Sequence[RoundRecord]) -> dict[str, State]:
        """Return each device's whole state after its last window. Raises SplitEasyError if the records do
        not fit.
        """
        ends = self._end_part(next(iter(self._devices.values())).training)
        for record in records:
            if record.number and not record.void:
                self._window(record)
            if record.number and record.ends_base == record.number:
                ends = self._mean_of_ends(record)
            for name, device in self._devices.items():
                self._train(name, device, record, ends)
        return {name: device.training.state() for name, device in self._devices.items()}

    def _window(self, record: RoundRecord) -> None:
        parts = {}
        for name, handed in record.participants.items():
            self._check(record, name, handed)
            parts[name] = self._fleet.weight_of(handed.samples), self._made[name]
        mean = weighted_mean(parts)
        gradients = {n.removeprefix(GRADIENT_PREFIX): x for n, x in mean.items() if n not in self._buffers}
        self._common.apply_given(gradients, {n: x for n, x in mean.items() if n in self._buffers})
        self._steps += 1

    def _check(self, record: RoundRecord, name: str, handed: HandedIn) -> None:
        device = self._devices[name]
        told = handed.samples, handed.round_samples, handed.first, handed.last
        found = device.samples, self._samples[name], device.began, device.step
        if told != found:
            raise SplitEasyError(
                f"window {record.number} has {name} with {told[0]} samples ({told[1]} in its round) in steps "
                f"{told[2]} to {told[3]}; its data gives {found[0]} ({found[1]}) in steps {found[2]} to "
                f"{found[3]}"
            )

    def _mean_of_ends(self, record: RoundRecord) -> dict[str, Tensor]:
        parts = {
            name: (self._fleet.weight_of(self._samples[name]), self._end_part(self._devices[name].training))
            for name in record.ended
        }
        if self._fleet.seals:
            return fixed_mean(parts, bits=fraction_bits(self._spec, record.drawn))
        return weighted_mean(parts)

    def _train(self, name: str, device: PlainDevice, record: RoundRecord, ends: Mapping[str, Tensor]) -> None:
        """Take the step of the next window, if the device goes on from this record."""
        begins = next((n for n, stint in enumerate(device.stints) if stint.round == record.number), None)
        if begins is None:
            return
        training = device.training
        body = self._of(self._common.state(), self._body)
        training.take_over(body, instead_of=self._of(training.state(), self._body))
        if self._opened.get(name) != record.opened:
            self._samples[name] = 0
            if self._fleet.ends_leave:
                own = self._of(training.state(), self._ends)
                training.take_over(rebased(own, ends, self._fleet), instead_of=own)
        self._opened[name] = record.opened
        training.schedule_from(self._steps)
        device.samples, device.began = 0, device.step
        if begins + 1 == len(device.stints):
            return
        while device.step < device.stints[begins + 1].step:
            device.step += 1
            inputs, targets = device.batches.batch(device.step)
            training.step(inputs, targets, hold=self._weights)
            device.samples += inputs[0].shape[0]
            self._samples[name] += inputs[0].shape[0]
        gradients = {GRADIENT_PREFIX + weight: x for weight, x in training.held.items()}
        buffers = {n: x.clone() for n, x in training.state().items() if n in self._buffers}
        self._made[name] = gradients | buffers

    def _of(self, state: State, names: set[str]) -> State:
        return {name: tensor for name, tensor in state.items() if tensor_of(name) in names}

    def _end_part(self, training: PlainTraining) -> dict[str, Tensor]:
        """Return a copy of what of a device's ends goes into the mean."""
        own, fixed = self._of(training.state(), self._ends), training.fixed_names()
        norms = norm_layers(name.removeprefix(MODEL_PREFIX) for name in own)
        return {
            name: tensor.clone()
            for name, tensor in own.items()
            if tensor_of(name) not in fixed
            and is_averaged(name, self._fleet, norms)
            and (tensor.is_floating_point() or not self._fleet.seals)
        }
