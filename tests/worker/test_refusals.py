"""A worker answers requests that can't be right with a typed ERROR, and lives on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch

from broker.protocol import messages as m
from broker.protocol.frames import to_frames
from broker.transport.topology import DEAD, DEFAULT_SHARDS, REPLY_TO, shard_of, uplink_key
from server_worker.engine.local import LocalEngine
from server_worker.session.machine import STARVED_TRIES
from spliteasy.runtime.torch_thread import NO_MEMORY, guarded
from tests.simulation import toy
from tests.worker.conftest import ATTEMPT, SESSION, Device, Server

T = TypeVar("T")


def forward(step: int = 1, **changes: Any) -> m.Forward:
    """A FORWARD that fits the toy's body, but for the changes."""
    fields: dict[str, Any] = {
        "session": SESSION,
        "attempt": ATTEMPT,
        "step": step,
        "samples": 4,
        "oldest_checkpoint": 0,
        "values": (torch.ones(4, 5),),
    }
    return m.Forward(**{**fields, **changes})


async def still_serves(device: Device) -> bool:
    return isinstance(await device.ask(forward()), m.Forwarded)


async def test_an_unknown_job_and_version_are_named(server: Server) -> None:
    async with server.device() as device:
        unknown = await device.ask(m.GetJob(session="nothing.phone-1"))
        assert isinstance(unknown, m.Error)
        assert unknown.code == "unknown-job"
        assert "toy" in (unknown.hint or "")
        other = await device.ask(m.Open(session=SESSION, attempt=ATTEMPT, digest="0" * 64, held=(0,)))
        assert isinstance(other, m.Error)
        assert other.code == "unknown-job"
        assert isinstance(await device.ask(m.GetJob(session=SESSION)), m.Job)


async def test_tensors_that_do_not_fit_are_refused_and_buried(server: Server) -> None:
    for values in (
        (torch.ones(4, 6),),
        (torch.ones(3, 5),),
        (torch.ones(4, 5, dtype=torch.float64),),
        (torch.ones(4, 5), torch.ones(1)),
        (None,),
        (7,),
        (),
    ):
        async with server.device() as device:
            await device.open()
            reply = await device.ask(forward(values=values))
            assert isinstance(reply, m.Error)
            assert reply.code == "bad-tensor"
            assert "bad-tensor" in await server.dead_letter()
            assert await still_serves(device)


async def test_a_gradient_of_another_shape_is_refused_and_the_step_can_go_on(server: Server) -> None:
    async with server.device() as device:
        await device.open()
        request = forward()
        opened = await device.ask(request)
        assert isinstance(opened, m.Forwarded)
        backward = {"session": SESSION, "attempt": ATTEMPT, "step": 1, "forward": request.request}
        wrong = await device.ask(m.Backward(**backward, values=(torch.ones(2, 5),)))
        assert isinstance(wrong, m.Error)
        assert wrong.code == "bad-tensor"
        (output,) = opened.values
        assert isinstance(output, torch.Tensor)
        missing = await device.ask(m.Backward(**backward, values=(torch.ones_like(output),)))
        assert isinstance(missing, m.Missing)
        again = await device.ask(request)
        assert isinstance(again, m.Forwarded)
        assert torch.equal(output, again.values[0])  # type: ignore[arg-type]
        assert isinstance(
            await device.ask(m.Backward(**backward, values=(torch.ones_like(output),))), m.Gradient
        )


async def test_an_evaluation_of_a_step_before_is_told_which_step_is_there(server: Server) -> None:
    async with server.device() as device:
        await device.open()
        request = forward()
        output = await device.ask(request)
        assert isinstance(output, m.Forwarded)
        ids = {"session": SESSION, "attempt": ATTEMPT}
        backward = m.Backward(**ids, step=1, forward=request.request, values=output.values)
        assert isinstance(await device.ask(backward), m.Gradient)
        for late in (m.Eval(**ids, step=0, samples=4, values=(torch.ones(4, 5),)), m.GetBody(**ids, step=0)):
            reply = await device.ask(late)
            assert isinstance(reply, m.Error)
            assert (reply.code, reply.retriable) == ("no-common-step", False)
            assert "is at step 1, and this asks for step 0" in reply.message
            assert "let the device's agent go on" in (reply.hint or "")


async def test_a_step_ahead_is_told_to_open_anew_and_a_late_one_is_dropped(server: Server) -> None:
    async with server.device() as device:
        await device.open()
        ahead = await device.ask(forward(step=5))
        assert isinstance(ahead, m.Reopen)
        assert await still_serves(device)


async def test_an_older_attempt_is_superseded(server: Server) -> None:
    async with server.device() as device:
        digest = toy.job(toy.Variant()).digest
        newer = m.AttemptRef(number=3, nonce="b" * 16)
        assert isinstance(
            await device.ask(m.Open(session=SESSION, attempt=newer, digest=digest, held=(0,))), m.Opened
        )
        reply = await device.ask(forward())
        assert isinstance(reply, m.Superseded)
        assert reply.newest == 3


async def test_a_session_that_was_forgotten_has_to_be_opened(server: Server) -> None:
    async with server.device() as device:
        assert isinstance(await device.ask(forward()), m.Reopen)


async def test_the_body_is_fetched_only_where_the_job_says_so(server: Server) -> None:
    async with server.device() as device:
        await device.open()
        reply = await device.ask(m.GetBody(session=SESSION, attempt=ATTEMPT, step=0))
        assert isinstance(reply, m.Error)
        assert reply.code == "not-allowed"


async def test_a_device_speaks_for_itself_only(server: Server) -> None:
    async with server.device("phone-2") as device:
        await device.send(forward(), routing_key=uplink_key("phone-1", 7))
        assert "phone-2" in await server.dead_letter()
        await device.send(forward())
        assert "a request of session toy.phone-1" in await server.dead_letter()


async def test_rubbish_goes_to_the_dead_queue(server: Server) -> None:
    async with server.device() as device:
        await device.transport.publish(uplink_key("phone-1", 7), b"rubbish" * 20)
        assert "reply queue" in await server.dead_letter()
        await device.open()
        assert await still_serves(device)


async def test_a_request_full_of_holes_is_answered_with_as_many_as_fit(server: Server) -> None:
    """Every other frame of thousands: what a HAVE can't tell counts as absent; no reader falls over it."""
    async with server.device() as device:
        await device.open()
        frames = list(to_frames(bytes(2 * 2500), message_id="b" * 16, chunk_bytes=2))
        for frame in (*frames[::2], frames[-1]):
            await device.transport.publish(
                uplink_key(device.name, shard_of(SESSION, DEFAULT_SHARDS)),
                frame,
                headers={REPLY_TO: device.queue},
            )
        have = await device.reply()
        assert isinstance(have, m.Have)
        assert have.ranges == tuple((4 * n, 4 * n + 2) for n in range(m.MAX_RANGES))
        assert await still_serves(device)


@pytest.mark.parametrize("dead_bytes", [1000])
async def test_the_broker_keeps_the_newest_dead_letters_only(server: Server) -> None:
    rubbish = b"rubbish" * 20
    async with server.device() as device:
        for _ in range(20):
            await device.transport.publish(uplink_key("phone-1", 7), rubbish)
        await device.open()
        assert await still_serves(device)
        depth = await server.worker.depth(DEAD)
    assert depth is not None
    assert depth.messages == 1000 // len(rubbish)


@pytest.mark.parametrize("words", [f"DefaultCPUAllocator: {NO_MEMORY}", "std::bad_alloc"])
async def test_a_worker_without_memory_says_so_and_goes_on_but_tries_a_step_only_so_often(
    server: Server, words: str
) -> None:
    async def starved(run: Callable[[], T]) -> T:
        def allocate() -> T:
            raise RuntimeError(words)

        return guarded(allocate)

    engine = server.worker.engine
    async with server.device() as device:
        await device.open()
        server.worker.engine = LocalEngine(starved)
        answers = [await device.ask(forward()) for _ in range(STARVED_TRIES)]
        server.worker.engine = engine
        assert await still_serves(device)
    *first, last = [answer for answer in answers if isinstance(answer, m.Error)]
    assert len(first) == STARVED_TRIES - 1
    assert {(error.code, error.retriable) for error in first} == {("unavailable", True)}
    assert (last.code, last.retriable) == ("computation-failed", False)
    assert "computation-failed" in await server.dead_letter()
