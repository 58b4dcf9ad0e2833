"""The end of a round on a worker: what a device may hand in, and what it is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from broker import encode
from broker.protocol import messages as m
from server_worker.rounds.turn import RoundTurns
from server_worker.store.fleet_calls import ListWeights
from spliteasy.errors import StoreUnavailable
from spliteasy.fleet.record import HandedIn, Member, RoundRecord
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


@pytest.mark.parametrize(("newest", "asked_again"), [(0, True), (1, False)])
def test_only_weights_of_the_round_under_way_are_asked_for_again(newest: int, asked_again: bool) -> None:
    """What was handed in for a round that has closed is dropped: nobody needs it any more."""
    turns = RoundTurns(lambda: 0.0)
    turns.request = ready(3, 1, {})
    turns._handed = HandedIn(samples=4, first=0, last=1, digest="ab" * 16)
    member = Member(seen=0.0, done=False, fleet_key=None, round=1, handed=turns._handed)
    looking = turns._with_weights({"phone-1": member}, "toy@1", RoundRecord.model_construct(number=newest))
    assert next(looking) == ListWeights("toy@1")
    if asked_again:
        with pytest.raises(StoreUnavailable, match="forgotten what phone-1 handed in"):
            looking.send({})
    else:
        with pytest.raises(StopIteration) as done:
            looking.send({})
        assert done.value.value["phone-1"].handed is None
