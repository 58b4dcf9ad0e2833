"""Fleets under chaos: devices that train one model, one fleet after the other, each by another mode."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from device_agent.state_folder import StateFolder
from server_worker.store import Store
from spliteasy.fleet.record import RoundRecord
from tests.chaos import toy
from tests.chaos.device import PROFILE, Device, Training
from tests.chaos.judge import replayed
from tests.chaos.stack import Stack
from tests.simulation import fleet, shared_fleet

MEMBERS = 3


@dataclass(kw_only=True)
class Fleet:
    """The devices of the fleets of a run; they train in the same slots, one fleet after the other."""

    devices: Sequence[Device]
    finished: list[str] = field(default_factory=list)
    """The jobs of the fleets that have come to their end."""

    async def run(self, more: Callable[[], bool]) -> None:
        """Train one fleet after the other while `more()`; ends with a whole one."""
        while more():
            name = toy.fleet_number(len(self.finished))
            await self.devices[0].stack.submit(name)
            if not await self.train(name):
                return

    async def train(self, name: str) -> bool:
        """Train the job of that name, whatever happens meanwhile; whether all came to its end."""
        trained = await asyncio.gather(
            *(
                device.train(Training(f"phone-{device.slot + 1}", name, own_folder=True))
                for device in self.devices
            )
        )
        if all(trained):
            self.finished.append(name)
        return all(trained)


async def new_fleet(stack: Stack, *, first: int = 0) -> Fleet:
    """Devices in slots from `first` on, which have a key in common."""
    key = stack.folder / "fleet.key"
    key.write_text(fleet.FLEET_KEY.hex())
    key.chmod(0o600)
    devices = []
    for slot in range(first, first + MEMBERS):
        link = await stack.link(ports=2, seed=slot)
        link.set_profile(PROFILE)
        options = ("--fleet-key", str(key))
        device = Device(slot=slot, first=slot + 1, stack=stack, link=link, port=link.port, options=options)
        devices.append(device)
    return Fleet(devices=devices)


async def judge_fleet(store: Store, devices: Sequence[Device], name: str) -> tuple[list[str], int]:
    """What is wrong with a fleet that has ended, by the plain program on the recorded decisions, and how many
    rounds were not void.
    """
    job, secrets, checkpoints = toy.job(name), [], {}
    for device in devices:
        training = next(each for each in device.finished if each.job == name)
        with StateFolder(device.state_of(training)) as state:
            secrets.append(state.secret())
            step = state.held()[-1]
            checkpoints[training.device] = step, state.load_checkpoint(step)
    case = fleet.Case(job, toy.DATA, tuple(checkpoints), tuple(secrets))
    lines = await store.fleets.rounds(f"{name}@{job.digest}")
    records = [RoundRecord.from_json(line) for line in lines]
    taken, ended = [], {}
    for member, (step, checkpoint) in checkpoints.items():
        trainer, _ = fleet.sides(case, member)
        trainer.load_state(checkpoint, step=step)
        body, committed = await replayed(store, Training(member, name))
        assert committed == step
        number = trainer.rounds.place.round - 1
        taken.append(fleet.Taken(member, number, records[number].digest))
        ended[member] = fleet.averaged(trainer, body)
    judge = shared_fleet.judge if job.spec.fleet.shares_body else fleet.judge
    return judge(case, records, taken, ended), sum(not each.void for each in records[1:])
