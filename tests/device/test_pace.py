"""The limit on the upload, under a virtual clock."""

from __future__ import annotations

import asyncio

import pytest
import torch

from broker.protocol import messages as m
from broker.transport.in_process import MemoryBroker, MemoryTransport
from broker.transport.topology import shard_queue
from device_agent.link.link import Link
from device_agent.link.rate_limit import BURST_S, MIN_CHUNK_BYTES, Pace
from device_agent.session import events as e
from tests.simulation.clock import run_virtually

ATTEMPT = m.AttemptRef(number=1, nonce="00" * 8)


def request(nbytes: int) -> m.Forward:
    return m.Forward(
        session="toy.phone-1",
        attempt=ATTEMPT,
        step=1,
        samples=1,
        values=(torch.zeros(nbytes, dtype=torch.uint8),),
        oldest_checkpoint=0,
    )


async def upload(rate: float, sizes: list[int], *, idle_s: float = 0.0) -> list[tuple[float, int]]:
    """The frames of messages of so many bytes: (when they left, their bytes)."""
    loop, broker = asyncio.get_running_loop(), MemoryBroker()
    server = broker.connect("worker")
    await server.declare(shard_queue(3))
    arriving = await server.subscribe(shard_queue(3).name, prefetch=10**6)
    frames: list[tuple[float, int]] = []

    async def read() -> None:
        async for delivery in arriving:
            frames.append((loop.time(), len(delivery.body)))

    async def connect() -> MemoryTransport:
        return broker.connect("phone-1")

    events: asyncio.Queue[e.Event] = asyncio.Queue()
    link = Link(connect, "phone-1", emit=events.put_nowait, clock=loop.time, pace=Pace(rate, clock=loop.time))
    link.shard = 3
    tasks = [asyncio.create_task(read()), asyncio.create_task(link.run())]
    while not isinstance(await events.get(), e.LinkUp):
        pass
    for nbytes in sizes:
        await asyncio.sleep(idle_s)
        link.send(sent := request(nbytes))
        assert await events.get() == e.Sent(sent.request)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return frames


@pytest.mark.parametrize("rate", [1_000.0, 25_000.0, 1e6])
@pytest.mark.parametrize("idle_s", [0.0, 60.0])
def test_over_any_time_no_more_than_the_rate_leaves(rate: float, idle_s: float) -> None:
    """Nor is what an idle link could have sent saved up: at most a short burst and one frame more."""
    frames = run_virtually(upload(rate, [200_000, 10, 50_000], idle_s=idle_s))
    assert sum(nbytes for _, nbytes in frames) > 250_000
    largest = max(nbytes for _, nbytes in frames)
    assert largest <= max(MIN_CHUNK_BYTES, rate * BURST_S) + 64
    for first in range(len(frames)):
        total = 0
        for at_s, nbytes in frames[first:]:
            total += nbytes
            assert total <= rate * (at_s - frames[first][0] + BURST_S) + largest + 1


def test_the_rate_is_used_up() -> None:
    frames = run_virtually(upload(10_000, [500_000]))
    total, largest = sum(nbytes for _, nbytes in frames), max(nbytes for _, nbytes in frames)
    assert (total - largest) / 10_000 - BURST_S <= frames[-1][0] - frames[0][0] <= total / 10_000
