"""A device trains the jobs that the operator allows it, and no others; a change takes effect at once."""

from __future__ import annotations

import asyncio

import pytest
import torch

from broker.protocol import messages as m
from server_worker.admission.authorization import may_train
from tests.simulation import toy
from tests.worker.conftest import ATTEMPT, JOB, SESSION, Device, Server
from tests.worker.test_refusals import forward

DIGEST = toy.job(JOB).digest


async def refused(device: Device, request: m.Request) -> str:
    """The error's text."""
    reply = await device.ask(request)
    assert isinstance(reply, m.Error)
    assert (reply.code, reply.retriable) == ("not-allowed", False)
    assert "spliteasy device allow phone-1 toy" in (reply.hint or "")
    return reply.message


async def test_a_job_that_is_not_allowed_is_neither_handed_out_nor_opened(server: Server) -> None:
    get_job = m.GetJob(session=SESSION)
    opening = m.Open(session=SESSION, attempt=ATTEMPT, digest=DIGEST, held=(0,))
    async with server.device() as device:
        for allowed in ([], ["digits", "toy-2", "digits@" + DIGEST]):
            await server.store.allow("phone-1", allowed)
            assert await refused(device, get_job) == "device phone-1 may not train job toy"
            assert "may not train version" in await refused(device, opening)
        assert await server.store.session(SESSION) is None
        await server.store.allow("phone-1", ["toy@" + "0" * 64])
        assert f"version {DIGEST[:12]} of job toy" in await refused(device, get_job)
        for allowed in (["toy"], ["toy@" + DIGEST], None):
            await server.store.allow("phone-1", allowed)
            assert isinstance(await device.ask(get_job), m.Job)
            assert isinstance(await device.ask(opening), m.Opened)


async def test_what_is_allowed_no_more_ends_with_the_step_at_hand_and_may_go_on_later(server: Server) -> None:
    await server.store.allow("phone-1", ["toy"])
    async with server.device() as device:
        await device.open()
        assert isinstance(await device.ask(forward()), m.Forwarded)
        replica = server.worker.actors[SESSION].session.replica
        assert replica.body is not None
        await server.store.allow("phone-1", ["digits"])
        while replica.body is not None:  # noqa: ASYNC110 - the next heartbeat; the fixture's deadline ends it
            await asyncio.sleep(0.01)
        assert "may not train" in await refused(device, forward())
        assert "may not train" in await refused(device, m.GetBody(session=SESSION, attempt=ATTEMPT, step=0))
        await server.store.allow("phone-1", ["digits", "toy"])
        again = await device.ask(forward())
        assert isinstance(again, m.Forwarded)
        assert isinstance(again.values[0], torch.Tensor)


async def test_a_limit_is_of_one_device(server: Server) -> None:
    await server.store.allow("phone-1", [])
    async with server.device("phone-2") as other:
        assert isinstance(await other.ask(m.GetJob(session="toy.phone-2")), m.Job)


@pytest.mark.parametrize(
    ("allowed", "digest", "may"),
    [
        (None, "d1", True),
        ((), "d1", False),
        (("toy",), "d1", True),
        (("toy@d1",), "d1", True),
        (("toy@d1",), "d2", False),
        (("toy@d1",), None, True),
        (("toys", "to", "t@d1"), None, False),
    ],
)
def test_may_train(allowed: tuple[str, ...] | None, digest: str | None, may: bool) -> None:
    assert may_train(allowed, "toy", digest) is may
