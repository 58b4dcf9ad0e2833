"""The device's link over a real broker."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from benchmarks.emulator import Direction, LinkEmulator, Profile
from broker import connect, decode
from broker.protocol import messages as m
from broker.protocol.assembler import Assembled, Assembler, AssemblerLimits
from broker.transport.in_process import MemoryBroker, MemoryTransport
from broker.transport.topology import dead_queue, front_queue
from deploy.nodes.native import HOST
from device_agent.link.link import Link
from device_agent.session import events as e
from tests.fixtures_rabbitmq import RabbitBroker
from tests.simulation.clock import run_virtually


@pytest.mark.rabbitmq
async def test_requests_follow_each_other_without_waiting_for_confirms(
    rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, rabbitmq_url: str
) -> None:
    """Nothing comes down any more, not even a confirm: still all requests go up, and in their order."""
    requests = [m.GetJob(session="digits.phone-1") for _ in range(3)]
    server = await connect(rabbitmq_url)
    await server.declare(dead_queue(), front_queue())
    arriving = await server.subscribe(front_queue().name, prefetch=8)
    events: asyncio.Queue[e.Event] = asyncio.Queue()
    async with LinkEmulator((HOST, rabbitmq_broker.node.port), Profile()) as emulator, asyncio.timeout(60):
        url = replace(rabbitmq_broker.node, port=emulator.port).url(rabbitmq_vhost)
        link = Link(lambda: connect(url), "phone-1", emit=events.put_nowait)
        running = asyncio.create_task(link.run())
        while not isinstance(await events.get(), e.LinkUp):
            pass
        link.send(requests[0])  # opens the channel, which needs an answer
        assert await events.get() == e.Sent(requests[0].request)
        emulator.stall(Direction.DOWN)
        for request in requests[1:]:
            link.send(request)
        assembler = Assembler(AssemblerLimits(), asyncio.get_running_loop().time)
        arrived = []
        while len(arrived) < len(requests):
            outcome = assembler.add("phone-1", (await anext(arriving)).body)
            assert isinstance(outcome, Assembled)
            arrived.append(decode(outcome.body))
        assert arrived == requests
        assert events.empty(), "no confirm came"
        running.cancel()
        emulator.resume()
        await asyncio.wait({running})
    await server.close()


@pytest.mark.parametrize("turns", range(6))
def test_a_link_ends_though_its_connection_is_lost_at_that_moment(turns: int) -> None:
    async def play() -> None:
        broker = MemoryBroker()
        events: asyncio.Queue[e.Event] = asyncio.Queue()
        transports: list[MemoryTransport] = []

        async def reach() -> MemoryTransport:
            transports.append(broker.connect("phone-1"))
            return transports[-1]

        running = asyncio.create_task(Link(reach, "phone-1", emit=events.put_nowait).run())
        assert await events.get() == e.LinkUp()
        broker.drop(transports[-1])
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        async with asyncio.timeout(60):
            await asyncio.wait({running})
        assert running.cancelled()

    run_virtually(play())
