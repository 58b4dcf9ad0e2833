"""What must hold of the windows of one body, judged from the records by a program without a wire.

Each record's hand-ins are computed again from the body and the ends that their devices had, and so is each
step of the body, and each mean of ends. Every device ends with what the last record that it was told says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from device_agent.training.trainer import DeviceTrainer
from server_worker.engine.body_trainer import BODY, BodyTrainer
from server_worker.engine.shared_body import window_step
from server_worker.replica.direct_body import DirectBody
from server_worker.rounds.ends import digest_of_contribution
from spliteasy.fleet.mean import weighted_mean
from spliteasy.fleet.record import HandedIn, RoundRecord
from spliteasy.fleet.sealed import fixed_mean, fraction_bits
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes
from spliteasy.training.segment_trainer import MODEL_PREFIX, REBASES_KEY, STEP_KEY
from tests.simulation import fleet, toy

Theta = Mapping[str, Tensor]


def judge(
    case: fleet.Case,
    records: Sequence[RoundRecord],
    taken: Sequence[fleet.Taken],
    ended: Mapping[str, Theta],
    *,
    lost: Collection[str] = (),
) -> list[str]:
    """What is wrong with the windows. `ended`: the body and the ends that each device has at its end.

    `lost`: the devices whose folders were lost, or went back to an older copy.
    """
    windows = _Windows(case)
    for before, record in pairwise(records):
        windows.replay(before, record)
    last = {each.device: records[each.round] for each in taken if each.round < len(records)}
    found = [*fleet.chain(records), *fleet.counted_once(records, lost), *fleet.acted(records, taken)]
    found += windows.found
    for device, tensors in ended.items():
        expected = {**windows.bodies[last[device].base], **windows.ends[last[device].ends_base]}
        found += [
            f"{device} ended with another {name} than after record {last[device].number}"
            for name in expected
            if MODEL_PREFIX in name
            if name not in tensors or not torch.equal(expected[name], tensors[name])
        ]
    return found


class _Windows:
    """The fleet in one process; `replay` takes one record after the other."""

    def __init__(self, case: fleet.Case) -> None:
        self._job = case.job
        self._sides = {device: fleet.sides(case, device) for device in case.devices}
        trainer, body = self._sides[case.devices[0]]
        self.bodies: dict[int, Theta] = {0: _model(body)}
        """The body, with its optimizer, after the records that moved it."""
        self.ends: dict[int, Theta] = {0: trainer.rounds.averaged()}
        self.found: list[str] = []
        self._opened: dict[str, int] = {}
        self._samples: dict[str, int] = {}

    def replay(self, before: RoundRecord, record: RoundRecord) -> None:
        parts = {}
        for device, handed in record.participants.items():
            part = self._batch(device, before, handed)
            parts[device] = part
            told = digest_of_contribution(tensors_to_bytes(part))
            sealed = self._job.spec.fleet.seals and handed.whole
            if not sealed and told != handed.digest:
                self.found.append(f"window {record.number}: {device} handed in other bits")
            if self._samples[device] != handed.round_samples:
                self.found.append(f"window {record.number}: {device} has {handed.round_samples} samples")
        if parts:
            self._step(before, record, parts)
        if record.ends_base == record.number:
            self.ends[record.number] = self._mean_of_ends(record)

    def _batch(self, device: str, before: RoundRecord, handed: HandedIn) -> dict[str, Tensor]:
        """Train the device on its next batch, as it goes on from the record before."""
        trainer, body = self._sides[device]
        engine = body.loaded.body
        assert isinstance(engine, BodyTrainer)
        # One that lost its state folder begins the round another time, from where the round began.
        if self._opened.get(device) != before.opened or handed.round_samples == handed.samples:
            trainer.rounds.take_mean(self.ends[before.ends_base], round_=before.number, drawn=0)
            self._samples[device] = 0
        self._opened[device] = before.opened
        own = {name.removeprefix(BODY): x for name, x in self.bodies[before.base].items()}
        counted = {STEP_KEY: torch.tensor(0), REBASES_KEY: torch.tensor(1)}
        engine.trainer.load_state({**own, **counted}, step=0)
        for each in (trainer.head, trainer.tail, engine.trainer):
            if each is not None:
                each.step, each.rebases = handed.first, 0
        body.loaded.step = handed.first
        samples = body.loaded.samples
        toy.take_step(trainer, body, handed.first + 1)
        self._samples[device] += body.loaded.samples - samples
        return {**body.averaged_part(), **(trainer.rounds.averaged() if handed.whole else {})}

    def _step(self, before: RoundRecord, record: RoundRecord, parts: Mapping[str, Theta]) -> None:
        bodies = {device: tensors_to_bytes(dict(part)) for device, part in parts.items()}
        own = {
            device: handed.model_copy(update={"digest": digest_of_contribution(bodies[device])})
            for device, handed in record.participants.items()
        }
        of_these = record.model_copy(update={"participants": own})
        state = tensors_to_bytes(dict(self.bodies[before.base])) if before.base else b""
        self.bodies[record.number] = tensors_from_bytes(window_step(self._job, of_these, bodies, state))

    def _mean_of_ends(self, record: RoundRecord) -> Theta:
        fleet_spec = self._job.spec.fleet
        parts = {
            device: (fleet_spec.weight_of(self._samples[device]), self._trainer(device).rounds.averaged())
            for device in record.ended
        }
        if fleet_spec.seals:
            return fixed_mean(parts, bits=fraction_bits(self._job.spec, record.drawn))
        return weighted_mean(parts)

    def _trainer(self, device: str) -> DeviceTrainer:
        return self._sides[device][0]


def _model(body: DirectBody) -> dict[str, Tensor]:
    return {BODY + name: x for name, x in body.snapshot().items() if name.startswith(MODEL_PREFIX)}
