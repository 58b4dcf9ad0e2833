"""Links of any speed: how a device cuts for them, and that none is taken for dead while bytes move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from benchmarks.emulator import LinkEmulator, Profile
from broker import messages as m
from broker.amqp import AmqpOptions, AmqpTransport, connect
from broker.chunks import CHUNK_BYTES, MIN_CHUNK_BYTES
from broker.room import Room
from broker.topology import reply_queue
from deploy.native import HOST
from device_agent.link import CHUNK_S, FIRST_CHUNK_BYTES, Link
from device_agent.speed import LinkSpeed
from tests.fixtures_rabbitmq import RabbitBroker

LATE_S = 60
"""Of a real broker, by when a test that hangs ends."""


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


async def test_requests_keep_their_size_within_a_connection_and_take_a_new_one_after_it() -> None:
    link = Link(_no_connection, "phone-1", emit=lambda _: None)
    request = m.GetJob(session="digits.phone-1")
    assert link._cut_of(request) == FIRST_CHUNK_BYTES
    link.speed.sent(16 << 20, 1.0)
    assert link._cut_of(request) == FIRST_CHUNK_BYTES
    link._connection_ended()
    assert link._cut_of(request) == CHUNK_BYTES


async def test_an_urgent_frame_passes_those_that_wait_and_others_keep_their_order() -> None:
    room, left = Room(8, lambda: 250.0), list[str]()

    async def send(name: str, urgency: int, frames: int, nbytes: int) -> None:
        turn = room.turn()
        for _ in range(frames):
            await room.enter(nbytes, urgency=urgency, turn=turn)
            left.append(name)

    async with asyncio.TaskGroup() as tasks:
        for name in ("first", "second"):
            tasks.create_task(send(name, 1, 3, 100))
        await asyncio.sleep(0)
        tasks.create_task(send("urgent", 0, 1, 100))
        for sent in range(2, 8):
            for _ in range(8):
                await asyncio.sleep(0)
            assert len(left) == sent, "as many bytes wait for confirms as may"
            room.leave(100)
    assert left == ["first"] * 2 + ["urgent", "first"] + ["second"] * 3


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
    """Up for nearly two publish deadlines; down, as one AMQP frame, for longer than any heartbeat allows."""
    slow, queue = Profile(up_bytes_s=200_000, down_bytes_s=16_000), reply_queue("phone-1", m.new_nonce())
    # The emulator's buffers take a part at once, which then moves unseen: shorter a deadline can't be here.
    patience = {"publish_timeout_s": 4.0, "watchdog_s": 0.25, "silence_s": 1.5}
    async with over(slow, rabbitmq_broker, rabbitmq_vhost, **patience) as (transport, emulator):
        await transport.declare(queue)
        subscription = await transport.subscribe(queue.name, prefetch=1)
        body = bytes(110_000)
        await transport.publish(queue.name, body, to_queue=True, persistent=False)
        publishing = transport.publish(queue.name, bytes(1_500_000), to_queue=True, persistent=False)
        delivery, _ = await asyncio.gather(anext(subscription), publishing)
        assert delivery.body == body
        assert len(emulator.connections) == 2
