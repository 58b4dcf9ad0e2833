"""Faults of RabbitMQ and of the way there: whatever happens, callers see a LinkError, and no frame that was
confirmed is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from broker.amqp.connection import AmqpTransport, connect
from broker.amqp.options import AmqpOptions
from broker.transport import topology
from broker.transport.base import Depth
from spliteasy.errors import LinkError
from tests.broker.conftest import RabbitHub
from tests.fixtures_rabbitmq import RabbitBroker

pytestmark = pytest.mark.rabbitmq

SHARD = topology.shard_queue(3)
KEY = topology.uplink_key("phone-1", 3)
QUICK = AmqpOptions(close_timeout_s=2, publish_timeout_s=20)


async def test_a_killed_broker_comes_back_with_all_that_it_confirmed(
    own_rabbitmq: RabbitBroker, no_loop_errors: None
) -> None:
    node = own_rabbitmq.node
    worker, device = await connect(node.url(), options=QUICK), await connect(node.url(), options=QUICK)
    await worker.declare(*topology.worker_queues(shards=4))
    await asyncio.to_thread(node.sync_queues)
    held = await worker.subscribe(SHARD.name, prefetch=2)
    confirmed: list[bytes] = []

    async def publish_until_lost() -> None:
        for number in range(1_000_000):
            frame = b"%d" % number
            await device.publish(KEY, frame)
            confirmed.append(frame)

    publisher = asyncio.create_task(publish_until_lost())
    async with asyncio.timeout(20):
        deliveries = [await anext(aiter(held)) for _ in range(2)]
    await held.ack(deliveries[0])
    await asyncio.to_thread(node.kill)
    async with asyncio.timeout(20):
        with pytest.raises(LinkError):
            await publisher
        await asyncio.gather(worker.wait_lost(), device.wait_lost())
    with pytest.raises(LinkError):
        await held.ack(deliveries[1])
    with pytest.raises(LinkError):
        await connect(node.url())
    await asyncio.gather(worker.close(), device.close())

    await asyncio.to_thread(node.start)
    again = await connect(node.url(), options=QUICK)
    await again.declare(*topology.worker_queues(shards=4))
    await again.publish(KEY, b"end")
    subscription = await again.subscribe(SHARD.name, prefetch=100)
    arrived: list[bytes] = []
    async with asyncio.timeout(60):
        while arrived[-1:] != [b"end"]:
            delivery = await anext(aiter(subscription))
            await subscription.ack(delivery)
            arrived.append(bytes(delivery.body))
    # The first one was acknowledged; whether the broker had noted it when it died is open.
    assert set(arrived) >= {*confirmed[1:], b"end"}
    assert await again.depth(SHARD.name) == Depth(messages=0, consumers=1)
    await again.close()


Operation = Callable[[AmqpTransport], Awaitable[object]]


async def read_and_settle(transport: AmqpTransport) -> None:
    subscription = await transport.subscribe(topology.FRONT, prefetch=2)
    try:
        delivery = await anext(aiter(subscription))
        await subscription.dead_letter(delivery, "poison")
        await subscription.ack(await anext(aiter(subscription)))
        await subscription.cancel()
    finally:
        await subscription.close()


OPERATIONS: list[Operation] = [
    lambda transport: transport.publish(KEY, bytes(300_000)),
    lambda transport: transport.publish("s.phone-1.front", b"x"),
    lambda transport: transport.publish("s.phone-1.nowhere", b"x"),
    lambda transport: transport.publish("spliteasy.nobody", b"x", to_queue=True),
    lambda transport: transport.depth(SHARD.name),
    lambda transport: transport.depth("spliteasy.nobody"),
    lambda transport: transport.declare(SHARD),
    lambda transport: transport.subscribe("spliteasy.nobody", prefetch=1),
    read_and_settle,
    read_and_settle,
]


@pytest.mark.parametrize("seed", range(12))
async def test_nothing_but_link_errors_comes_out_of_a_connection_that_breaks(
    rabbit: RabbitHub, seed: int
) -> None:
    """The network is cut at a random moment among many calls, some of them cancelled."""
    rng = random.Random(seed)
    setup = await rabbit.connect("setup")
    await setup.declare(*topology.worker_queues(shards=4))
    for _ in range(20):
        await setup.publish("s.phone-1.front", b"x")
    transport = await rabbit.connect("worker-1", call_timeout_s=10, publish_timeout_s=10)
    tasks: list[asyncio.Task[Any]] = []
    cancelled = set()
    for _ in range(40):
        tasks.append(asyncio.ensure_future(rng.choice(OPERATIONS)(transport)))
        if rng.random() < 0.1:
            victim = rng.choice(tasks)
            cancelled.add(victim)
            victim.cancel()
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() / 100)
    rabbit.cut(transport)
    async with asyncio.timeout(30):
        await transport.wait_lost()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for task, outcome in zip(tasks, outcomes, strict=True):
        if isinstance(outcome, asyncio.CancelledError):
            assert task in cancelled
        else:
            assert not isinstance(outcome, BaseException) or isinstance(outcome, LinkError), repr(outcome)
    await transport.close()


async def test_calls_that_wait_for_a_dead_network_end_when_the_connection_is_lost(rabbit: RabbitHub) -> None:
    """Buffers and queues on the way are full then: nothing moves any more."""
    worker = await rabbit.connect("worker-1")
    await worker.declare(*topology.worker_queues(shards=4))
    for _ in range(60):
        await worker.publish("s.phone-1.front", b"x")
    subscription = await worker.subscribe(topology.FRONT, prefetch=60)
    async with asyncio.timeout(20):
        deliveries = [await anext(aiter(subscription)) for _ in range(60)]
    rabbit.proxy(worker).stall()
    calls: list[Coroutine[Any, Any, object]] = [subscription.ack(delivery) for delivery in deliveries[:40]]
    calls += [subscription.dead_letter(delivery, "poison") for delivery in deliveries[40:]]
    calls += [worker.publish(KEY, bytes(8 << 20)) for _ in range(5)]
    calls += [worker.depth(SHARD.name) for _ in range(20)]
    tasks = [asyncio.create_task(call) for call in calls]
    assert (await asyncio.wait(tasks, timeout=0.3))[1], "nothing waits: the network is not dead"
    rabbit.cut(worker)
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    foreign = [
        each for each in outcomes if isinstance(each, BaseException) and not isinstance(each, LinkError)
    ]
    assert foreign == []


@pytest.mark.parametrize("seed", range(3))
async def test_workers_that_come_and_go_lose_nothing(rabbit: RabbitHub, seed: int) -> None:
    """Consumers are cut, closed and cancelled while frames arrive; each frame is acknowledged in the end."""
    rng = random.Random(seed)
    sender = await rabbit.connect("phone-1", delivery_limit=1000)
    await sender.declare(SHARD)
    frames = {b"%d" % number for number in range(150)}
    acknowledged: set[bytes] = set()

    async def work() -> None:
        while acknowledged != frames:
            worker = await rabbit.connect("worker-1")
            budget = rng.randrange(1, 40)
            with suppress(LinkError):
                subscription = await worker.subscribe(SHARD.name, prefetch=5)
                async for delivery in subscription:
                    await subscription.ack(delivery)
                    acknowledged.add(bytes(delivery.body))
                    budget -= 1
                    if acknowledged == frames or budget == 0:
                        await rng.choice((subscription.cancel, subscription.close, worker.close))()
                        break
                    if budget == 1 and rng.random() < 0.5:
                        rabbit.cut(worker)
            await worker.close()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        workers = [group.create_task(work()) for _ in range(2)]
        for frame in sorted(frames):
            await sender.publish(KEY, frame)
        await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
        for task in workers:
            task.cancel()
    assert acknowledged == frames
