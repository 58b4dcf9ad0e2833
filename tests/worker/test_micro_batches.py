"""A step in micro-batches on a worker: computed in order whatever arrives first, committed once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
import torch

from broker import decode
from broker.protocol import messages as m
from broker.transport.base import Delivery
from broker.transport.faults import FAULTLESS, Faultless, Verdict
from tests.simulation import toy
from tests.worker.conftest import SESSION, Device, Server

MICRO_BATCHES = 3
ATTEMPT = m.AttemptRef(number=1, nonce="0" * 16)
"""The attempt as `toy.train_alone` names it."""

Request = m.Forward | m.Backward


@pytest.fixture(params=[False, True], ids=["two-cuts", "single"])
def variant(request: pytest.FixtureRequest) -> toy.Variant:
    return toy.Variant(
        single=request.param, batch=8, micro_batches=MICRO_BATCHES, activations="int8", epochs=1
    )


def first_step(variant: toy.Variant) -> tuple[list[Request], str]:
    """Return what a device sends in step 1, forwards first, and the digest of what it gets."""
    sent: list[Request] = []

    def note(request: m.Request) -> None:
        if isinstance(request, Request) and request.step == 1:
            sent.append(request)

    _, _, digests = toy.train_alone(toy.job(variant), toy.DATA, "phone-1", sent=note)
    return sorted(sent, key=lambda request: (request.kind == "BACKWARD", request.micro)), digests[1]


async def open_session(device: Device, variant: toy.Variant) -> None:
    opened = await device.ask(
        m.Open(session=SESSION, attempt=ATTEMPT, digest=toy.job(variant).digest, held=(0,))
    )
    assert isinstance(opened, m.Opened)


async def replies(device: Device, gradients: int = MICRO_BATCHES) -> list[m.AnyMessage]:
    """All that comes until so many GRADIENTs have come."""
    found: list[m.AnyMessage] = []
    while sum(isinstance(reply, m.Gradient) for reply in found) < gradients:
        found.append(await device.reply())
    return found


def ask(request: Request) -> m.Ask:
    forward = request.request if isinstance(request, m.Forward) else request.forward
    return m.Ask(
        session=SESSION, attempt=ATTEMPT, step=request.step, about=request.request,
        about_kind=request.kind, micro=request.micro, forward=forward,
    )  # fmt: skip


async def logged(server: Server) -> tuple[list[tuple[str, int]], str]:
    """The first log entry: kind and micro-batch of its requests, and its digest."""
    entry = await anext(server.store.read_log(SESSION, after=0, upto=1))
    requests = [decode(raw) for raw in entry.requests]
    return [(r.kind, r.micro) for r in requests if isinstance(r, Request)], entry.gradient_digest


def places(requests: Sequence[Request]) -> list[tuple[str, int]]:
    return [(request.kind, request.micro) for request in requests]


@pytest.mark.parametrize("seed", range(6))
async def test_any_order_of_arrival_gives_the_same_step(
    server: Server, variant: toy.Variant, seed: int
) -> None:
    """Shuffled, some twice: one commit, the log in order, and the bits of the training in one process."""
    requests, digest = first_step(variant)
    rng = random.Random(seed)
    arriving = requests + rng.sample(requests, 2)
    rng.shuffle(arriving)
    async with server.device() as device:
        await open_session(device, variant)
        for request in arriving:
            await device.send(request)
        # A repeat of the last GRADIENTs may come too; all of the step's have come then.
        answers = {r.answers for r in await replies(device) if isinstance(r, m.Gradient)}
        while len(answers) < MICRO_BATCHES:
            answers |= {r.answers for r in await replies(device, 1) if isinstance(r, m.Gradient)}
    assert await logged(server) == (places(requests), digest)
    assert server.worker.steps == 1


async def test_what_has_to_come_first_is_asked_for_once(server: Server, variant: toy.Variant) -> None:
    first, second, third = first_step(variant)[0][:MICRO_BATCHES]
    async with server.device() as device:
        await open_session(device, variant)
        missing = await device.ask(third)
        assert isinstance(missing, m.Missing)
        assert (missing.missing, missing.micro) == ("FORWARD", None)
        also = await device.reply()
        assert isinstance(also, m.Missing)
        assert (also.missing, also.micro) == ("FORWARD", 1)
        await device.send(second)  # says nothing new
        await device.send(first)
        answers = [await device.reply() for _ in range(MICRO_BATCHES)]
    expected = [first.request, second.request, third.request]
    assert [r.answers for r in answers if isinstance(r, m.Forwarded | m.Gradient)] == expected


async def test_a_lost_reply_is_asked_for_again_before_and_after_the_commit(
    server: Server, variant: toy.Variant
) -> None:
    requests, _ = first_step(variant)
    early = [r for r in requests if r.micro == 0]
    async with server.device() as device:
        await open_session(device, variant)
        given = {}
        for request in requests:
            reply = given[request.request] = await device.ask(request)
            assert not isinstance(reply, m.Error)
            if request is early[-1]:
                await same(device, request, reply)
        for request in requests:
            if variant.single or isinstance(request, m.Backward):
                await same(device, request, given[request.request])
    committed = [r.durable_step for r in given.values() if isinstance(r, m.Gradient)]
    assert committed == [0, 0, 1], "only the last one says that the step is there"


async def same(device: Device, request: Request, reply: m.AnyMessage) -> None:
    again = await device.ask(ask(request))
    while isinstance(again, m.Working):  # its first reply came before the worker was done with it
        again = await device.ask(ask(request))
    assert isinstance(again, m.Gradient)
    assert isinstance(reply, m.Gradient)
    assert (again.answers, again.micro) == (reply.answers, reply.micro)
    for ours, theirs in zip(again.values, reply.values, strict=True):
        assert isinstance(ours, torch.Tensor)
        assert isinstance(theirs, torch.Tensor)
        assert torch.equal(ours, theirs)


async def test_a_worker_that_lost_the_open_step_names_all_of_it_that_it_needs(
    server: Server, variant: toy.Variant
) -> None:
    """The worker is as after a takeover: GRADIENT 0 had come already, and what led to it is asked for once
    more."""
    requests, digest = first_step(variant)
    needed = [r for r in requests if r.micro <= 1]
    async with server.device() as device:
        await open_session(device, variant)
        for request in needed[:-1]:
            assert not isinstance(await device.ask(request), m.Error)
        server.worker.actors[SESSION].session.drop()
        await device.send(ask(needed[-1]))
        missing = [await device.reply() for _ in needed]
        named = [(r.missing, r.micro or 0) for r in missing if isinstance(r, m.Missing)]
        assert named == places(needed)
        for request in [*needed, *(r for r in requests if r.micro == 2)]:
            await device.send(request)
        await replies(device)
    assert await logged(server) == (places(requests), digest)


async def test_a_micro_batch_that_does_not_fit_its_batch_is_refused(
    server: Server, variant: toy.Variant
) -> None:
    requests, digest = first_step(variant)
    first, second = requests[:2]
    assert isinstance(first, m.Forward)
    wrong: list[Request | m.Ask] = [
        ask(first.model_copy(update={"micro": 1023})),  # of which everything would be missing
        first.model_copy(update={"micro": 3}),  # there are three
        first.model_copy(update={"micro": 1023}),
        first.model_copy(update={"batch": 9 + 2}),  # its first has four samples
        first.model_copy(update={"batch": None}),  # three samples are three micro-batches of one
    ]
    async with server.device() as device:
        await open_session(device, variant)
        for request in wrong:
            reply = await device.ask(request)
            assert isinstance(reply, m.Error)
            assert reply.code == "bad-tensor"
        assert not isinstance(await device.ask(first), m.Error)
        other_batch = second.model_copy(update={"batch": 9})
        assert isinstance(await device.ask(other_batch), m.Error)
        for request in requests:
            await device.send(request)
        await replies(device)
    assert (await logged(server))[1] == digest


@pytest.mark.parametrize("waiting_bytes", [0])
async def test_with_no_room_to_wait_requests_come_again_in_their_order(
    server: Server, variant: toy.Variant
) -> None:
    requests, digest = first_step(variant)
    async with server.device() as device:
        await open_session(device, variant)
        for early in requests[1:]:
            assert isinstance(await device.ask(early), m.Busy)
        for request in requests:
            assert isinstance(await device.ask(request), m.Forwarded | m.Gradient)
    assert server.worker.actors.memory_budget.taken_bytes == 0
    assert (await logged(server))[1] == digest


class SlowFirstReply(Faultless):
    """The broker takes its time with the worker's first frame; notes who has got a reply."""

    def __init__(self) -> None:
        self.delays = iter([3.0])
        self.delivered = 0

    def on_publish(self, principal: str, target: str, frame: bytes) -> Verdict:
        return Verdict(delay_s=next(self.delays, 0.0)) if principal == "worker" else FAULTLESS

    def on_deliver(self, principal: str, queue: str, delivery: Delivery) -> Verdict:
        self.delivered += principal == "phone-1"
        return FAULTLESS


@pytest.mark.parametrize("variant", [True], indirect=True, ids=["single"])
async def test_requests_are_served_while_a_reply_waits_for_its_confirm(
    server: Server, variant: toy.Variant
) -> None:
    """The step commits before the first of its replies has left."""
    requests, _ = first_step(variant)
    async with server.device() as device:
        await open_session(device, variant)
        policy = server.broker.policy = SlowFirstReply()
        for request in requests:
            await device.send(request)
        while server.worker.steps == 0:  # noqa: ASYNC110 - the commit is seen from outside only
            await asyncio.sleep(0.01)
        assert policy.delivered == 0
        assert [reply.answers for reply in await replies(device) if isinstance(reply, m.Gradient)] == [
            request.request for request in requests
        ], "in their order"
