"""Measure the link to a broker: round trip and rates, by frames to a reply queue that it declares."""

from __future__ import annotations

import asyncio
import statistics
import time

from broker import Transport
from broker.protocol.messages import new_nonce
from broker.transport.topology import IDENTIFIER, reply_queue
from spliteasy.planning.profile import LinkProfile

FRAME_BYTES = 128 << 10
IN_FLIGHT = 8
FIRST_BYTES, MOST_BYTES = 512 << 10, 32 << 20
ABOUT_S = 2.0
ROUND_TRIPS = 7


async def measure_link(transport: Transport) -> LinkProfile:
    """Send to the queue, then read it back. Raises LinkError, and LinkRefused where the account may not.

    The account must be allowed to publish straight to a queue: those of the local stack are, an
    enrolled device's is not.
    """
    device = transport.principal if IDENTIFIER.fullmatch(transport.principal) else "profile"
    queue = reply_queue(device, new_nonce())
    await transport.declare(queue)
    try:
        rtt_s = await _round_trip_s(transport, queue.name)
        first_s = await _send(transport, queue.name, FIRST_BYTES)
        wanted = FIRST_BYTES * ABOUT_S / max(first_s, 1e-3)
        count = int(min(MOST_BYTES, max(FIRST_BYTES, wanted)))
        up_s = await _send(transport, queue.name, count)
        down_s, read = await _read(transport, queue.name, FIRST_BYTES, count)
    finally:
        await transport.delete(queue.name)
    return LinkProfile(
        up_bytes_s=count / max(up_s - rtt_s, 1e-6), down_bytes_s=read / max(down_s, 1e-6), rtt_s=rtt_s
    )


async def _round_trip_s(transport: Transport, queue: str) -> float:
    """Return the time from publishing next to nothing to the broker's confirm."""
    taken = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        await transport.publish(queue, b"\0", to_queue=True)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


async def _send(transport: Transport, queue: str, count: int) -> float:
    """Seconds until the broker has confirmed the last of `count` bytes."""
    frame = bytes(FRAME_BYTES)
    window = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with window:
            await transport.publish(queue, frame, to_queue=True)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(_frames(count)):
            tasks.create_task(one())
    return time.perf_counter() - began


async def _read(transport: Transport, queue: str, *sent: int) -> tuple[float, int]:
    """Seconds from the first whole frame's arrival to the last one's, and the bytes that came meanwhile."""
    expected = ROUND_TRIPS + sum(_frames(count) for count in sent)
    subscription = await transport.subscribe(queue, prefetch=expected)
    arrivals: list[float] = []
    left = expected
    async for delivery in subscription:
        left -= 1
        if len(delivery.body) == FRAME_BYTES:
            arrivals.append(time.perf_counter())
        await subscription.ack(delivery)
        if not left:
            break
    await subscription.close()
    return arrivals[-1] - arrivals[0], (len(arrivals) - 1) * FRAME_BYTES


def _frames(count: int) -> int:
    return -(-count // FRAME_BYTES)
