"""What must hold of a fleet's rounds, judged from the records by a program without a wire.

Each record's hand-ins are computed again from the mean before it, and so is each mean: both must be as
recorded. Every device ends with the last mean that it was told, of a record that stays in the chain.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from device_agent.link.speed import LinkSpeed
from device_agent.training.codec_policy import BySpeed, StepChoices
from device_agent.training.data import BatchOrder, load_dataset
from device_agent.training.ends import draw_ends, ends_key, job_key, label_key
from device_agent.training.trainer import DeviceTrainer
from server_worker.engine.body_trainer import BODY, BodyTrainer
from server_worker.replica.direct_body import DirectBody
from server_worker.rounds.ends import digest_of_contribution
from spliteasy.fleet.mean import weighted_mean
from spliteasy.fleet.record import RoundRecord
from spliteasy.fleet.sealed import fixed_mean, fraction_bits
from spliteasy.graph.tensors import tensors_to_bytes
from spliteasy.job import Job
from spliteasy.training.segment_trainer import MODEL_PREFIX
from tests.drawn import SECRET
from tests.simulation import toy

FLEET_KEY = bytes(range(32))
Theta = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """A fleet that was trained."""

    job: Job
    data: str
    devices: tuple[str, ...]
    secrets: tuple[bytes, ...]
    """The devices' own, in the same order."""

    @classmethod
    def of(cls, variant: toy.Variant, devices: tuple[str, ...] = toy.FLEET) -> Case:
        """The fleet of a simulation."""
        return cls(toy.job(variant), toy.DATA, devices, (SECRET,) * len(devices))

    def secret(self, device: str) -> bytes:
        return self.secrets[self.devices.index(device)]


@dataclass(frozen=True, slots=True)
class Taken:
    """A device went on from a mean."""

    device: str
    round: int
    record: str


def judge(
    case: Case,
    records: Sequence[RoundRecord],
    taken: Sequence[Taken],
    ended: Mapping[str, Theta],
    *,
    lost: Collection[str] = (),
) -> list[str]:
    """What is wrong with the rounds. `ended`: the averaged tensors that each device has at its end.

    `lost`: the devices whose folders were lost, or went back to an older copy.
    """
    found = [*chain(records), *counted_once(records, lost), *acted(records, taken)]
    theta = {0: averaged(*sides(case, case.devices[0]))}
    for record in records[1:]:
        if record.void:
            continue
        before = theta[records[record.number - 1].base]
        parts = {
            device: (record.weights[device], stint(case, device, before, handed.first, handed.last))
            for device, handed in record.participants.items()
        }
        for device, (_, part) in parts.items():
            digest = digest_of_contribution(tensors_to_bytes(part))
            if not case.job.spec.fleet.seals and digest != record.participants[device].digest:
                found.append(f"round {record.number}: {device} handed in other bits")
        theta[record.number] = _mean(case, record, parts)
    last = {each.device: each for each in taken}
    for device, tensors in ended.items():
        expected = theta[records[last[device].round].base]
        found += [
            f"{device} ended with another {name} than the mean of round {last[device].round}"
            for name in expected
            if name not in tensors or not torch.equal(expected[name], tensors[name])
        ]
    return found


def chain(records: Sequence[RoundRecord]) -> list[str]:
    """The records are one chain, and whoever took part was drawn."""
    found = []
    for before, record in pairwise(records):
        if record.number != before.number + 1 or record.previous != before.digest:
            found.append(f"record {record.number} does not follow the one before")
        if strangers := set(record.participants) - set(before.cohort):
            found.append(f"round {record.number}: {sorted(strangers)} took part and were not drawn")
    return found


def counted_once(records: Sequence[RoundRecord], lost: Collection[str]) -> list[str]:
    """No step of a device is in two means, unless a person let it go on from an older folder."""
    found, counted = [], dict[str, int]()
    for record in records:
        for device, handed in record.participants.items():
            if handed.first < counted.get(device, 0) and device not in lost:
                found.append(f"round {record.number} has step {handed.first + 1} of {device} once more")
            counted[device] = handed.last
    return found


def acted(records: Sequence[RoundRecord], taken: Sequence[Taken]) -> list[str]:
    """Nobody acted on a record that the store has lost since."""
    return [
        f"{each.device} went on from round {each.round} by a record that is not there any more"
        for each in taken
        if each.round >= len(records) or records[each.round].digest != each.record
    ]


def _mean(case: Case, record: RoundRecord, parts: Mapping[str, tuple[int, Theta]]) -> dict[str, Tensor]:
    spec = case.job.spec
    if spec.fleet.hands_over:
        return dict(next(iter(parts.values()))[1])
    if not spec.fleet.seals:
        return weighted_mean(parts)
    bodies = {d: (n, {k: x for k, x in part.items() if k.startswith(BODY)}) for d, (n, part) in parts.items()}
    ends = {
        d: (n, {k: x for k, x in part.items() if not k.startswith(BODY)}) for d, (n, part) in parts.items()
    }
    return {**weighted_mean(bodies), **fixed_mean(ends, bits=fraction_bits(spec, record.drawn))}


def averaged(trainer: DeviceTrainer, body: DirectBody) -> dict[str, Tensor]:
    """The tensors of all three segments that are averaged, or shared."""
    if trainer.job.spec.fleet.shares_body:
        shared = {BODY + name: x for name, x in body.snapshot().items() if name.startswith(MODEL_PREFIX)}
        return {**shared, **trainer.rounds.averaged()}
    return {**body.averaged_part(), **trainer.rounds.averaged()}


def sides(case: Case, device: str) -> tuple[DeviceTrainer, DirectBody]:
    """Both sides of a device at step 0, with the fleet's common ends."""
    job, secret = case.job, case.secret(device)
    key = job_key(secret, device=device, job=job.digest)
    drawn_from, _ = ends_key(FLEET_KEY, key, job)
    found = load_dataset(case.data, device, job.signature)
    order = BatchOrder(found.train, job.spec, job.signature, device=device, key=key, labels=label_key(secret))
    choices = StepChoices(job.spec.link, BySpeed(job.spec.link, LinkSpeed()), ahead=1, saved=None)
    ends = draw_ends(job, drawn_from)
    trainer = DeviceTrainer.create(job, order, None, device=device, key=key, ends=ends, choices=choices)
    return trainer, DirectBody(job, f"{job.name}.{device}")


_STINTS: dict[tuple[str, str, str, int, int], dict[str, Tensor]] = {}


def stint(case: Case, device: str, theta: Theta, first: int, last: int) -> dict[str, Tensor]:
    """What the device has after steps `first` + 1 to `last` from that mean; optimizers begin anew."""
    mark = digest_of_contribution(tensors_to_bytes(theta))
    key = case.job.digest, mark, device, first, last
    if key not in _STINTS:
        trainer, body = sides(case, device)
        trainer.rounds.take_mean(
            {k: x for k, x in theta.items() if not k.startswith(BODY)}, round_=0, drawn=0
        )
        engines = body.loaded.body
        assert isinstance(engines, BodyTrainer)
        state = engines.trainer.snapshot()
        own = {k.removeprefix(BODY): x for k, x in theta.items() if k.startswith(BODY)}
        engines.trainer.load_state({**state, **own}, step=0)
        for each in (trainer.head, trainer.tail, engines.trainer):
            if each is not None:
                each.step, each.rebases = first, 0
        body.loaded.step = first
        for step in range(first + 1, last + 1):
            toy.take_step(trainer, body, step)
        _STINTS[key] = averaged(trainer, body)
    return _STINTS[key]
