"""The plain programs of the modes, against what a PyTorch user would write with one model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from spliteasy.fleet.program import FleetProgram, PlainDevice, Stint
from spliteasy.fleet.record import HandedIn, RoundRecord
from spliteasy.job import Job, JobSpec
from spliteasy.runtime.randomness import Key
from spliteasy.training import schedule
from spliteasy.training.reference import PlainTraining

KEY = Key(bytes(32))
STEPS = 2
"""Steps of a turn."""
DEVICES = ("phone-1", "phone-2")


def build() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def example() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)


@cache
def job(optimizer: str, mode: str = "relay", **more: Any) -> Job:
    settings = {"sgd": {"lr": 0.1, "momentum": 0.9}, "adamw": {"lr": 0.02, "weight_decay": 0.1}}
    return Job.create(
        JobSpec.model_validate(
            {
                "name": "plain",
                "seed": 1,
                "batch_size": 4,
                "epochs": 2,
                "share_ends": True,
                "model": {
                    "factory": "tests.fleet.test_program:build",
                    "example": "tests.fleet.test_program:example",
                    "cuts": ("1", "3"),
                },
                "loss": {"name": "cross_entropy"},
                "optimizer": {"name": optimizer, **settings[optimizer]},
                "schedule": {"name": "cosine", "steps": 10, "warmup_steps": 2},
                "privacy": {"ends": "public"},
                "fleet": {"mode": mode, "round_steps": STEPS, "aggregate": "plain", **more},
            }
        )
    )


class Batches:
    """Batches of a device, which are its own at every step."""

    def __init__(self, device: str) -> None:
        self._device = device

    def batch(self, step: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(100 * int(self._device[-1]) + step)
        return (torch.randn(4, 3, generator=generator),), (torch.randint(0, 2, (4,), generator=generator),)


def relay_records(turns: Sequence[str]) -> tuple[list[RoundRecord], dict[str, list[Stint]]]:
    """The records of turns that were all taken, and where each device began them; all end with the last."""
    records = [_record(0, {}, turns[0])]
    taken = dict.fromkeys(DEVICES, 0)
    stints: dict[str, list[Stint]] = {device: [] for device in DEVICES}
    for number, device in enumerate(turns, start=1):
        stints[device].append(Stint(number - 1, taken[device]))
        handed = HandedIn(samples=4 * STEPS, first=taken[device], last=taken[device] + STEPS, digest="0" * 64)
        taken[device] += STEPS
        after = turns[number] if number < len(turns) else None
        records.append(_record(number, {device: handed}, after))
    for device in DEVICES:
        stints[device].append(Stint(len(turns), taken[device]))
    return records, stints


def _record(number: int, participants: dict[str, HandedIn], after: str | None) -> RoundRecord:
    return RoundRecord(
        number=number,
        previous="",
        participants=participants,
        weights=dict.fromkeys(participants, 1),
        base=number,
        cohort=() if after is None else (after,),
        closed_at=0.0,
    )


def test_a_relay_is_one_model_and_one_optimizer_on_one_devices_data_after_the_others() -> None:
    for optimizer in ("sgd", "adamw"):
        turns = ["phone-1", "phone-2", "phone-1", "phone-2"]
        records, stints = relay_records(turns)
        plain = job(optimizer)
        devices = {
            device: PlainDevice(
                PlainTraining(plain, build(), _loss, device=device, key=KEY, ends={}),
                Batches(device),
                stints[device],
            )
            for device in DEVICES
        }
        ended = FleetProgram(plain, devices).run(records)
        expected = _by_hand(plain, optimizer, turns)
        for device in DEVICES:
            for name, tensor in expected.items():
                assert torch.equal(ended[device][f"model/{name}"], tensor), (optimizer, device, name)


def _by_hand(plain: Job, optimizer: str, turns: Sequence[str]) -> dict[str, Tensor]:
    model = build()
    parameters = list(model.parameters())
    one: torch.optim.Optimizer
    if optimizer == "sgd":
        one = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=False)
    else:
        one = torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1, foreach=False)
    scheduler = LambdaLR(one, lambda taken: schedule.factor(plain.spec.schedule, taken + 1))
    taken = dict.fromkeys(DEVICES, 0)
    for device in turns:
        for _ in range(STEPS):
            taken[device] += 1
            (inputs,), (targets,) = Batches(device).batch(taken[device])
            one.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            one.step()
            scheduler.step()
    return model.state_dict()


def _loss(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(outputs[0], targets[0])
