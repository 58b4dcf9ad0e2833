"""The end of a round on a worker: what a device may hand in, and what it is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from torch import Tensor

from broker import encode
from broker.protocol import messages as m
from server_worker.rounds.decision import beginning
from spliteasy.fleet.record import Member, RoundRecord
from tests.simulation import fleet, toy
from tests.worker.conftest import ATTEMPT, SESSION, Device, Server
from tests.worker.test_refusals import forward

ALONE = toy.Variant(epochs=2, fleet=(*toy.ROUNDS, ("aggregate", "plain"), ("quorum", 1), ("max_samples", 8)))


@pytest.fixture
def variant() -> toy.Variant:
    return ALONE


def ready(step: int, round_: int, ends: dict[str, Tensor], **changes: Any) -> m.Ready:
    fields: dict[str, Any] = {
        "session": SESSION,
        "attempt": ATTEMPT,
        "step": step,
        "round": round_,
        "names": tuple(ends),
        "values": tuple(ends.values()),
        "samples": 4 if round_ else 0,
        "oldest_checkpoint": 0,
    }
    return m.Ready(**{**fields, **changes})


async def trained_for_a_round(device: Device) -> None:
    """Open, begin with the others (there are none), take one step."""
    assert isinstance(await device.open(ALONE), m.Opened)
    began = await device.ask(ready(1, 0, {}))
    assert isinstance(began, m.Mean)
    assert (began.round, began.initial, began.names) == (0, True, ())
    opened = forward(2)
    assert isinstance(await device.ask(opened), m.Forwarded)
    backward = m.Backward(
        session=SESSION, attempt=ATTEMPT, step=2, forward=opened.request, values=(torch.ones(4, 5),)
    )
    assert isinstance(await device.ask(backward), m.Gradient)


def own_ends() -> dict[str, Tensor]:
    trainer, _ = fleet.sides(fleet.Case.of(ALONE), "phone-1")
    return {name: x + 0.25 if x.is_floating_point() else x for name, x in trainer.rounds.averaged().items()}


def asked_about(request: m.Ready) -> m.Ask:
    about = request.request
    return m.Ask(session=SESSION, attempt=ATTEMPT, step=3, about=about, about_kind="READY", forward=about)


def same(ours: m.AnyMessage, theirs: m.AnyMessage) -> bool:
    return encode(ours) == encode(theirs)


async def test_a_device_that_is_alone_goes_on_from_its_own_weights(server: Server) -> None:
    ends = own_ends()
    async with server.device() as device:
        await trained_for_a_round(device)
        request = ready(3, 1, ends)
        mean = await device.ask(request)
        assert isinstance(mean, m.Mean)
        assert (mean.round, mean.initial, mean.step) == (1, False, 3)
        taken = dict(zip(mean.names, mean.values, strict=True))
        assert all(torch.equal(ends[name], taken[name]) for name in ends)  # type: ignore[arg-type]
        assert same(await device.ask(request), mean), "a repeat gives the same answer, and takes no step"
        answer = await device.ask(asked_about(request))
        while isinstance(answer, m.Working):  # the answer before is still on its way
            answer = await device.ask(asked_about(request))
        assert same(answer, mean)
        assert isinstance(await device.ask(forward(4)), m.Forwarded)
    lines = await server.store.fleets.rounds(f"toy@{toy.job(ALONE).digest}")
    records = [RoundRecord.from_json(line) for line in lines]
    assert [record.number for record in records] == [0, 1]
    assert records[1].weights == {"phone-1": 4}
    assert records[1].digest == mean.record


async def test_hostile_ends_are_refused_and_the_round_goes_on_without_them(server: Server) -> None:
    ends = own_ends()
    weight = next(name for name, x in ends.items() if x.is_floating_point())
    spoilt: list[tuple[dict[str, Any], str]] = [
        ({"values": ()}, "tensors arrived for"),
        ({"names": (), "values": ()}, "the device's ends lack"),
        (
            {"names": (*ends, "body/model/3.weight"), "values": (*ends.values(), torch.ones(5, 5))},
            "has no tensor",
        ),
        ({"samples": 10**9}, "says that it trained on"),
        ({"round": 2}, "hands in for round 2"),
        ({"round": 0}, "hands in for round 0"),
    ]
    for value, told in ((float("nan"), "not finite"), (1e30, "have the norm")):
        changed = {**ends, weight: torch.full_like(ends[weight], value)}
        spoilt.append(({"values": tuple(changed.values())}, told))
    other = {**ends, weight: torch.ones(7)}
    spoilt.append(({"values": tuple(other.values())}, "is not a tensor of"))
    async with server.device() as device:
        await trained_for_a_round(device)
        for changes, told in spoilt:
            refused = await device.ask(ready(3, 1, ends, **changes))
            assert isinstance(refused, m.Error), changes
            assert (refused.code, refused.retriable) == ("bad-tensor", False)
            assert told in refused.message
        assert isinstance(await device.ask(ready(3, 1, ends)), m.Mean), "the right ones are taken"


async def test_more_samples_than_the_job_takes_are_refused(server: Server) -> None:
    """The worker counts them itself: what the device says makes no difference."""
    async with server.device() as device:
        await trained_for_a_round(device)
        for step in (3, 4):
            opened = forward(step)
            assert isinstance(await device.ask(opened), m.Forwarded)
            values = (torch.ones(4, 5),)
            backward = m.Backward(
                session=SESSION, attempt=ATTEMPT, step=step, forward=opened.request, values=values
            )
            assert isinstance(await device.ask(backward), m.Gradient)
        refused = await device.ask(ready(5, 1, own_ends(), samples=12))
        assert isinstance(refused, m.Error)
        assert "trained on 12 samples in the round, and the job takes 8" in refused.message


async def test_of_two_devices_with_one_name_the_later_one_trains(server: Server) -> None:
    async with server.device() as device:
        await trained_for_a_round(device)
        later = m.AttemptRef(number=ATTEMPT.number + 1, nonce="e" * 16)
        digest = toy.job(ALONE).digest
        opened = await device.ask(m.Open(session=SESSION, attempt=later, digest=digest, held=(0,)))
        assert isinstance(opened, m.Opened)
        refused = await device.ask(ready(3, 1, own_ends()))
        assert isinstance(refused, m.Superseded)


async def test_another_fleet_key_is_told_to_that_device_alone(server: Server) -> None:
    async with server.device() as device:
        await trained_for_a_round(device)
        refused = await device.ask(ready(3, 1, own_ends(), fleet_key="ab" * 8))
        assert isinstance(refused, m.Error)
        assert refused.code == "not-allowed"
        assert "another fleet key" in refused.message
        assert isinstance(await device.ask(ready(3, 1, own_ends())), m.Mean)


async def test_what_is_asked_about_and_not_here_is_missing(server: Server) -> None:
    async with server.device() as device:
        await trained_for_a_round(device)
        missing = await device.ask(asked_about(ready(3, 1, {})))
        assert isinstance(missing, m.Missing)
        assert missing.missing == "READY"


async def test_a_late_device_goes_on_though_what_it_handed_in_was_dropped(server: Server) -> None:
    spec, name, ends = toy.job(ALONE).spec, f"toy@{toy.job(ALONE).digest}", own_ends()
    fleets, now = server.store.fleets, await server.store.now()
    both = dict.fromkeys(("phone-1", "phone-2"), Member(seen=now, done=False))
    record = beginning(both, spec.fleet, seed=7, now=now, fleet_key=None)
    await fleets.append_round(name, record.to_json(), number=0, previous=None)
    async with server.device() as device:
        await trained_for_a_round(device)
        request = ready(3, 1, ends)
        assert isinstance(await device.ask(request), m.Busy), "phone-2 has not handed in"
        for number in (1, 2):  # other workers end two rounds without it, and the last one is overdue
            changes = {"number": number, "previous": record.digest, "opened": number, "closed_at": now - 60}
            previous, record = record, record.model_copy(update={**changes, "cohort": ("phone-2",)})
            await fleets.append_round(name, record.to_json(), number=number, previous=previous.to_json())
        await fleets.drop_weights(name, list(await fleets.weights(name)))
        answer = await device.ask(asked_about(request))
        while isinstance(answer, m.Busy | m.Working):
            await asyncio.sleep(0.05)
            answer = await device.ask(asked_about(request))
        assert isinstance(answer, m.Mean)
        assert answer.round == 3
