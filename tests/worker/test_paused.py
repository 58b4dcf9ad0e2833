"""An operator pauses a session: no step begins, nothing is lost; and what devices report is kept."""

from __future__ import annotations

import torch

from broker.protocol import messages as m
from server_worker.session.refusals import PAUSED
from tests.worker.conftest import ATTEMPT, SESSION, Device, Server
from tests.worker.test_refusals import forward


def backward_of(answered: m.Forward, forwarded: m.AnyMessage, **more: object) -> m.Backward:
    assert isinstance(forwarded, m.Forwarded)
    values = tuple(torch.ones_like(value) for value in forwarded.values if isinstance(value, torch.Tensor))
    return m.Backward(
        session=SESSION, attempt=ATTEMPT, step=answered.step, forward=answered.request, values=values, **more
    )  # type: ignore[arg-type]


async def says_paused(device: Device, request: m.Request) -> bool:
    reply = await device.ask(request)
    while isinstance(reply, m.Working):  # the worker is not quite done with what came before
        reply = await device.ask(request)
    return isinstance(reply, m.Busy) and reply.reason == PAUSED


async def test_a_step_under_way_ends_and_the_next_begins_when_the_operator_lets_it(server: Server) -> None:
    async with server.device() as device:
        await device.open()
        first = forward()
        forwarded = await device.ask(first)
        assert await server.store.pause(SESSION, True)
        assert isinstance(await device.ask(backward_of(first, forwarded)), m.Gradient)
        second = forward(2)
        ask = m.Ask(
            session=SESSION, attempt=ATTEMPT, step=2, about=second.request, about_kind="FORWARD",
            forward=second.request,
        )  # fmt: skip
        assert await says_paused(device, second)
        assert await says_paused(device, ask), "so that no tensors travel for nothing"
        await server.store.pause(SESSION, False)
        assert isinstance(await device.ask(ask.model_copy(update={"request": m.new_nonce()})), m.Missing)
        assert isinstance(await device.ask(second), m.Forwarded)


async def test_a_worker_that_takes_a_paused_session_over_holds_it_too(server: Server) -> None:
    async with server.device() as device:
        await device.open()
        actor = server.worker.actors[SESSION]
        await actor.wait_idle()
        await server.store.pause(SESSION, True)
        actor.session.drop()
        assert await says_paused(device, forward())
        again = m.AttemptRef(number=2, nonce="b" * 16)
        meta = await server.store.session(SESSION)
        assert meta is not None
        opened = await device.ask(
            m.Open(session=SESSION, attempt=again, digest=meta.job_digest, held=(0,), agent="1.2.3")
        )
        assert isinstance(opened, m.Opened)
        assert await says_paused(device, forward(attempt=again))
        meta = await server.store.session(SESSION)
        assert meta is not None
        assert (meta.agent, meta.committed, meta.paused) == ("1.2.3", 0, True)


async def test_a_loss_that_may_be_reported_is_in_the_store_when_the_worker_leaves(server: Server) -> None:
    async with server.device() as device:
        await device.open()
        first = forward()
        gradient = await device.ask(backward_of(first, await device.ask(first), loss=0.75))
        assert isinstance(gradient, m.Gradient)
    await server.worker.losses.write(server.store)
    assert await server.store.losses(SESSION) == {1: 0.75}
