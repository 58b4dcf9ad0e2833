"""The plain program that a fleet has to equal bit for bit: federated averaging in one process.

    for each round r, in order:
        θ ← the mean of what r's participants have trained, by their names    (where r is void: θ stays)
        each device that begins its next round from r: θ_i ← θ, then its steps of plain PyTorch

Where each device hands over to the next, a round is the turn of one, its mean is all that the device has,
with its optimizer, and the schedule of the learning rate counts everybody's steps: one process that trains
one model on the devices' data, one device after the other.

Who took part in a round, and where each device began, was decided in the run and is on record; all else the
program computes itself, from the user's own model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from spliteasy.errors import SplitEasyError
from spliteasy.fleet.mean import weighted_mean
from spliteasy.fleet.parts import is_averaged, norm_layers, rebased
from spliteasy.fleet.record import RoundRecord
from spliteasy.fleet.sealed import fixed_mean, fraction_bits
from spliteasy.job import Job
from spliteasy.training.reference import PlainTraining, State
from spliteasy.training.segment_trainer import MODEL_PREFIX, OPTIMIZER_PREFIX

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Stint:
    """A device went on from the mean of round `round`, after `step` steps."""

    round: int
    step: int


class Batches(Protocol):
    """The training batches of a device."""

    def batch(self, step: int) -> tuple[Tensors, Tensors]: ...


@dataclass(slots=True)
class PlainDevice:
    """One device of the program."""

    training: PlainTraining
    batches: Batches
    stints: Sequence[Stint]
    """The steps at which it began its rounds; the last one is the mean that it ended with."""
    step: int = 0
    samples: int = 0
    """Samples of the round under way."""
    began: int = 0
    """Steps taken before it."""


class FleetProgram:
    """The devices, by name; `run` trains them."""

    def __init__(self, job: Job, devices: Mapping[str, PlainDevice]) -> None:
        self._spec, self._fleet = job.spec, job.spec.fleet
        segments = [job.body, *((job.head, job.tail) if self._fleet.ends_leave else ())]
        self._names = set[str]()
        for segment in segments:
            if segment is not None:
                self._names |= set(segment.state_dict())
        ends = (job.head, job.tail) if self._fleet.ends_leave else ()
        self._ends = {name for segment in ends if segment is not None for name in segment.state_dict()}
        self._devices = dict(sorted(devices.items()))
        self._steps = 0
        """Steps behind the mean, where the schedule counts those of all devices."""

    def run(self, records: Sequence[RoundRecord]) -> dict[str, State]:
        """Return each device's whole state after its last mean. Raises SplitEasyError if the records do not
        fit.
        """
        theta = self._part(next(iter(self._devices.values())).training)
        for record in records:
            if not record.void and record.number:
                theta = self._mean(record)
            for device in self._devices.values():
                self._train(device, record.number, theta)
        return {name: device.training.state() for name, device in self._devices.items()}

    def _mean(self, record: RoundRecord) -> dict[str, Tensor]:
        parts = {}
        for name, handed in record.participants.items():
            device = self._devices[name]
            told, found = (
                (handed.samples, handed.first, handed.last),
                (device.samples, device.began, device.step),
            )
            if told != found:
                raise SplitEasyError(
                    f"round {record.number} has {name} with {told[0]} samples in steps {told[1]} to "
                    f"{told[2]}; its data gives {found[0]} samples in steps {found[1]} to {found[2]}"
                )
            parts[name] = self._fleet.weight_of(handed.samples), self._part(device.training)
            if self._fleet.hands_over:
                self._steps += device.step - device.began
                return parts[name][1]
        if not self._fleet.seals:
            return weighted_mean(parts)
        bits = fraction_bits(self._spec, record.drawn)
        return {
            **weighted_mean({name: (n, self._of(part, sealed=False)) for name, (n, part) in parts.items()}),
            **fixed_mean(
                {name: (n, self._of(part, sealed=True)) for name, (n, part) in parts.items()}, bits=bits
            ),
        }

    def _of(self, part: Mapping[str, Tensor], *, sealed: bool) -> dict[str, Tensor]:
        """Return what of a device's part is sealed, or is not."""
        return {name: x for name, x in part.items() if (tensor_of(name) in self._ends) is sealed}

    def _train(self, device: PlainDevice, round_: int, theta: Mapping[str, Tensor]) -> None:
        """Take the steps of the round that the device begins from the mean of `round_`, if it does."""
        begins = next((n for n, stint in enumerate(device.stints) if stint.round == round_), None)
        if begins is None:
            return
        own = self._own(device.training.state())
        device.training.take_over(rebased(own, theta, self._fleet), instead_of=own)
        if self._fleet.hands_over:
            device.training.schedule_from(self._steps)
        device.samples, device.began = 0, device.step
        if begins + 1 == len(device.stints):
            return
        while device.step < device.stints[begins + 1].step:
            device.step += 1
            inputs, targets = device.batches.batch(device.step)
            device.training.step(inputs, targets)
            device.samples += inputs[0].shape[0]

    def _own(self, state: State) -> State:
        """Return the entries of the segments that are averaged."""
        return {name: tensor for name, tensor in state.items() if tensor_of(name) in self._names}

    def _part(self, training: PlainTraining) -> dict[str, Tensor]:
        """Return a copy of what goes into the mean."""
        own, fixed = self._own(training.state()), training.fixed_names()
        norms = norm_layers(name.removeprefix(MODEL_PREFIX) for name in own)
        return {
            name: tensor.clone()
            for name, tensor in own.items()
            if tensor_of(name) not in fixed
            and is_averaged(name, self._fleet, norms)
            and (
                tensor.is_floating_point() or not self._fleet.seals_sums or tensor_of(name) not in self._ends
            )
        }


def tensor_of(name: str) -> str:
    """Return the parameter or buffer that an entry of a state belongs to."""
    if name.startswith(OPTIMIZER_PREFIX):
        return name.removeprefix(OPTIMIZER_PREFIX).rpartition("/")[0]
    return name.removeprefix(MODEL_PREFIX)
