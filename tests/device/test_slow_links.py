"""Links of any speed: how a device cuts for them, and that none is taken for dead while bytes move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.emulator import Direction, LinkEmulator, Profile
from broker.amqp.connection import AmqpTransport, connect
from broker.amqp.options import AmqpOptions
from broker.protocol import messages as m
from broker.protocol.frames import CHUNK_BYTES, MIN_CHUNK_BYTES, parse_frame, to_frames
from broker.transport.send_window import SendWindow
from broker.transport.topology import dead_queue, reply_queue, shard_queue
from deploy.nodes.native import HOST
from device_agent.link.link import CHUNK_S, FIRST_CHUNK_BYTES, WORKERS, Link
from device_agent.link.speed import LinkSpeed
from device_agent.session import events as e
from tests.fixtures_rabbitmq import RabbitBroker

LATE_S = 60
"""A test with a real broker that hangs ends after this long."""


@pytest.mark.parametrize(
    ("mbit_up", "mbit_down", "chunk_bytes"),
    [
        (None, None, FIRST_CHUNK_BYTES),
        (0.05, 0.1, MIN_CHUNK_BYTES),
        (1.0, 4.0, 15_625),
        (10.0, 0.8, 12_500),  # what comes down is cut alike
        (20.0, 50.0, 312_500),
        (100.0, 100.0, CHUNK_BYTES),
        (10_000.0, 10_000.0, CHUNK_BYTES),
    ],
)
def test_a_chunk_takes_an_eighth_of_a_second(
    mbit_up: float | None, mbit_down: float | None, chunk_bytes: int
) -> None:
    link = Link(_no_connection, "phone-1", emit=lambda _: None)
    if mbit_up is not None and mbit_down is not None:
        up, down = (rate * 1e6 / 8 for rate in (mbit_up, mbit_down))
        link.speed.sent(1 << 20, (1 << 20) / up)
        link.speed.arrived(100_000, 0.0, last=False)
        link.speed.arrived(100_000, 100_000 / down, last=True)
    assert link.frame_bytes == pytest.approx(chunk_bytes, rel=1e-6)


async def settled() -> None:
    """All tasks have come to where they wait for something from outside."""
    for _ in range(50):
        await asyncio.sleep(0)


async def _no_connection() -> AmqpTransport:
    raise AssertionError


def test_a_chunk_that_never_gets_through_is_followed_by_finer_ones() -> None:
    """A link that was fast, now 100 kbit/s and cut every 5 s: no message ends, so that none is timed."""
    speed = LinkSpeed()
    speed.sent(10 << 20, 1.0)
    speed.gave_up(CHUNK_BYTES, 0.01)  # cut at once: nothing is learnt
    assert speed.up == 10 << 20
    speed.gave_up(CHUNK_BYTES, 5.0)
    assert speed.up == CHUNK_BYTES / 5.0
    speed.gave_up(int(speed.up * CHUNK_S), 5.0)
    assert speed.up < 12_500


async def test_the_bytes_that_came_of_a_reply_are_told() -> None:
    link, reply = Link(_no_connection, "phone-1", emit=lambda _: None), m.new_nonce()
    for frame in list(to_frames(bytes(200_000), message_id=reply, chunk_bytes=4 * MIN_CHUNK_BYTES))[:2]:
        link._assembler.add(WORKERS, frame)
    ask = m.Ask(
        session="digits.phone-1",
        attempt=m.AttemptRef(number=1, nonce=m.new_nonce()),
        step=1,
        about=m.new_nonce(),
        about_kind="FORWARD",
        forward=m.new_nonce(),
    )
    asked = link._with_partial_replies(ask)
    assert (asked.partial, asked.partial_ranges) == ((reply,), (((0, 8 * MIN_CHUNK_BYTES),),))


async def test_an_urgent_frame_passes_those_that_wait_and_others_keep_their_order() -> None:
    window, left = SendWindow(8, lambda: 250.0), list[str]()

    async def send(name: str, urgency: int, frames: int, nbytes: int) -> None:
        ticket = window.ticket()
        for _ in range(frames):
            await window.acquire(nbytes, urgency=urgency, ticket=ticket)
            left.append(name)

    async with asyncio.TaskGroup() as tasks:
        for name in ("first", "second"):
            tasks.create_task(send(name, 1, 3, 100))
        await asyncio.sleep(0)
        tasks.create_task(send("urgent", 0, 1, 100))
        for sent in range(2, 8):
            await settled()
            assert len(left) == sent, "as many bytes wait for confirms as may"
            window.release(100)
    assert left == ["first"] * 2 + ["urgent", "first"] + ["second"] * 3


@pytest.mark.rabbitmq
async def test_a_backward_overtakes_the_forward_of_a_later_micro_batch_and_a_cut_tells_of_the_link(
    rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, rabbitmq_url: str
) -> None:
    """The link is so slow that two frames fill its window; then the rest never gets through."""
    now_s = 0.0
    server = await connect(rabbitmq_url)
    await server.declare(dead_queue(), shard_queue(0))
    arriving = await server.subscribe(shard_queue(0).name, prefetch=64)
    events: asyncio.Queue[e.Event] = asyncio.Queue()
    async with (
        LinkEmulator((HOST, rabbitmq_broker.node.port), Profile()) as emulator,
        asyncio.timeout(LATE_S),
    ):
        url = replace(rabbitmq_broker.node, port=emulator.port).url(rabbitmq_vhost)
        link = Link(
            lambda: connect(url),
            "phone-1",
            emit=events.put_nowait,
            chunk_bytes=MIN_CHUNK_BYTES,
            clock=lambda: now_s,
        )
        link.shard = 0
        running = asyncio.create_task(link.run())
        while not isinstance(await events.get(), e.LinkUp):
            pass
        link.speed.up, link.speed.rtt_s = 10_000.0, 0.1
        attempt = m.AttemptRef(number=1, nonce=m.new_nonce())
        identity: dict[str, Any] = {"session": "digits.phone-1", "attempt": attempt, "step": 1}
        forward = m.Forward(**identity, oldest_checkpoint=0, samples=1, values=(torch.zeros(14_000),))
        backward = m.Backward(**identity, forward=m.new_nonce(), values=(torch.zeros(4),))
        emulator.stall(Direction.DOWN)
        link.send(forward)
        frames = [parse_frame((await anext(arriving)).body) for _ in range(2)]
        assert {frame.message_id for frame in frames} == {forward.request}
        link.send(backward)
        await settled()  # both wait for room
        emulator.resume()
        while not frames[-1].last or frames[-1].message_id != forward.request:
            frames.append(parse_frame((await anext(arriving)).body))
        order = [frame.message_id for frame in frames]
        assert order.index(backward.request) == 2 < len(order) - 3
        assert {await events.get(), await events.get()} == {e.Sent(forward.request), e.Sent(backward.request)}

        emulator.stall()
        link.send(forward.model_copy(update={"request": m.new_nonce()}))
        await settled()
        now_s = 60.0
        emulator.cut()
        while not isinstance(await events.get(), e.LinkDown):
            pass
        assert link.speed.up < 2 * MIN_CHUNK_BYTES / 60.0
        running.cancel()
        await asyncio.wait({running})
    await server.close()


@asynccontextmanager
async def over(
    profile: Profile, rabbit: RabbitBroker, vhost: str, **options: float
) -> AsyncIterator[tuple[AmqpTransport, LinkEmulator]]:
    """A transport over such a link, with a queue of its own."""
    async with LinkEmulator((HOST, rabbit.node.port), profile) as emulator, asyncio.timeout(LATE_S):
        url = replace(rabbit.node, port=emulator.port).url(vhost)
        transport = await connect(url, options=AmqpOptions(**{"heartbeat_s": 1, **options}))  # type: ignore[arg-type]
        try:
            yield transport, emulator
        finally:
            await transport.close()


@pytest.mark.rabbitmq
async def test_a_frame_may_take_longer_than_every_deadline_while_its_bytes_move(
    rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str
) -> None:
    """The frame goes up for nearly two publish deadlines, and comes down, as one AMQP frame, for longer than
    any heartbeat allows."""
    slow, queue = Profile(up_bytes_s=200_000, down_bytes_s=16_000), reply_queue("phone-1", m.new_nonce())
    # The emulator's buffers take a part at once, which then moves unseen: shorter a deadline can't be here.
    patience = {"publish_timeout_s": 4.0, "watchdog_s": 0.25, "silence_s": 1.5}
    async with over(slow, rabbitmq_broker, rabbitmq_vhost, **patience) as (transport, emulator):
        await transport.declare(queue)
        subscription = await transport.subscribe(queue.name, prefetch=1)
        body = bytes(110_000)
        await transport.publish(queue.name, body, to_queue=True)
        publishing = transport.publish(queue.name, bytes(1_500_000), to_queue=True)
        delivery, _ = await asyncio.gather(anext(subscription), publishing)
        assert delivery.body == body
        assert len(emulator.connections) == 2
