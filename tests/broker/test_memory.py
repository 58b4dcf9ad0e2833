"""The in-process broker under virtual time: its faults do what they say, and the same each time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from broker.transport import topology
from broker.transport.base import Delivery, Subscription
from broker.transport.faults import FAULTLESS, Fault, Verdict
from broker.transport.in_process import LEAST_SWEPT, MemoryBroker, MemoryTransport
from spliteasy.errors import LinkError, Unroutable
from tests.simulation.clock import run_virtually

SHARD = topology.shard_queue(3)
KEY = topology.uplink_key("phone-1", 3)
REPLY = topology.reply_queue("phone-1", "0123456789abcdef")


class Scripted:
    """Verdicts for frames and deliveries by their body; each is given once."""

    def __init__(self, **verdicts: Verdict) -> None:
        self._verdicts = verdicts

    def on_publish(self, principal: str, target: str, frame: bytes) -> Verdict:
        return self._verdicts.pop(f"publish_{frame.decode()}", FAULTLESS)

    def on_deliver(self, principal: str, queue: str, delivery: Delivery) -> Verdict:
        return self._verdicts.pop(f"deliver_{bytes(delivery.body).decode()}", FAULTLESS)


async def started(policy: Scripted | None = None) -> tuple[MemoryBroker, MemoryTransport, Subscription]:
    broker = MemoryBroker(policy=policy)
    worker = broker.connect("worker-1")
    await worker.declare(topology.dead_queue(), SHARD)
    return broker, worker, await worker.subscribe(SHARD.name, prefetch=10)


async def read(subscription: Subscription, number: int) -> list[tuple[str, bool]]:
    deliveries = [await anext(aiter(subscription)) for _ in range(number)]
    return [(bytes(delivery.body).decode(), delivery.redelivered) for delivery in deliveries]


def virtually(main: Coroutine[Any, Any, None]) -> None:
    run_virtually(main)


def test_a_cut_before_publishing_loses_connection_and_frame() -> None:
    async def main() -> None:
        broker, _, subscription = await started(Scripted(publish_a=Verdict(fault=Fault.CUT)))
        device = broker.connect("phone-1")
        with pytest.raises(LinkError, match="before the frame went out"):
            await device.publish(KEY, b"a")
        await device.wait_lost()
        await broker.connect("phone-1").publish(KEY, b"b")
        assert await read(subscription, 1) == [("b", False)]

    virtually(main())


def test_a_cut_after_publishing_loses_the_confirm_only() -> None:
    async def main() -> None:
        broker, _, subscription = await started(Scripted(publish_a=Verdict(fault=Fault.CUT_AFTER)))
        device = broker.connect("phone-1")
        with pytest.raises(LinkError, match="before the confirm came"):
            await device.publish(KEY, b"a")
        assert await read(subscription, 1) == [("a", False)]

    virtually(main())


def test_a_duplicated_publish_arrives_twice() -> None:
    async def main() -> None:
        broker, _, subscription = await started(Scripted(publish_a=Verdict(fault=Fault.DUPLICATE)))
        await broker.connect("phone-1").publish(KEY, b"a")
        assert await read(subscription, 2) == [("a", False), ("a", False)]

    virtually(main())


def test_a_duplicated_delivery_comes_again_as_redelivered() -> None:
    async def main() -> None:
        broker, _, subscription = await started(Scripted(deliver_a=Verdict(fault=Fault.DUPLICATE)))
        await broker.connect("phone-1").publish(KEY, b"a")
        assert await read(subscription, 2) == [("a", False), ("a", True)]

    virtually(main())


def test_a_cut_delivery_takes_the_consumers_connection_and_goes_to_the_next() -> None:
    async def main() -> None:
        broker, worker, subscription = await started(Scripted(deliver_a=Verdict(fault=Fault.CUT)))
        successor = await broker.connect("worker-2").subscribe(SHARD.name, prefetch=10)
        await broker.connect("phone-1").publish(KEY, b"a")
        await worker.wait_lost()
        with pytest.raises(LinkError):
            await anext(aiter(subscription))
        assert await read(successor, 1) == [("a", True)]

    virtually(main())


def test_a_delayed_publish_is_overtaken_and_confirmed_when_it_arrives() -> None:
    async def main() -> None:
        broker, _, subscription = await started(Scripted(publish_a=Verdict(delay_s=5)))
        device = broker.connect("phone-1")
        slow = asyncio.create_task(device.publish(KEY, b"a"))
        await asyncio.sleep(0)
        await device.publish(KEY, b"b")
        assert not slow.done()
        assert await read(subscription, 2) == [("b", False), ("a", False)]
        await slow
        assert asyncio.get_running_loop().time() == 5

    virtually(main())


def test_a_frame_under_way_arrives_whatever_becomes_of_its_sender() -> None:
    async def main() -> None:
        delays = {"publish_a": Verdict(delay_s=5), "publish_b": Verdict(delay_s=6)}
        broker, _, subscription = await started(Scripted(**delays))
        device = broker.connect("phone-1")
        cancelled = asyncio.create_task(device.publish(KEY, b"a"))
        cut = asyncio.create_task(device.publish(KEY, b"b"))
        await asyncio.sleep(1)
        cancelled.cancel()
        broker.drop(device)
        assert await read(subscription, 2) == [("a", False), ("b", False)]
        with pytest.raises(LinkError):
            await cut

    virtually(main())


def test_a_delayed_delivery_goes_back_if_its_consumer_ends_first() -> None:
    async def main() -> None:
        broker, _, subscription = await started(Scripted(deliver_a=Verdict(delay_s=5)))
        await broker.connect("phone-1").publish(KEY, b"a")
        successor = await broker.connect("worker-2").subscribe(SHARD.name, prefetch=10)
        await subscription.cancel()
        assert await read(successor, 1) == [("a", True)]
        assert asyncio.get_running_loop().time() == 0

    virtually(main())


def test_a_reply_queue_expires_to_the_second() -> None:
    async def main() -> None:
        broker = MemoryBroker()
        device = broker.connect("phone-1")
        await device.declare(replace(REPLY, expires_s=120))
        await asyncio.sleep(119)
        await device.declare(replace(REPLY, expires_s=120))  # this is use
        await asyncio.sleep(119)
        subscription = await device.subscribe(REPLY.name, prefetch=1)
        await asyncio.sleep(1000)
        await device.publish(REPLY.name, b"read", to_queue=True)
        assert await read(subscription, 1) == [("read", False)]
        await subscription.close()
        await asyncio.sleep(119)
        await device.publish(REPLY.name, b"kept", to_queue=True)
        await asyncio.sleep(1)
        with pytest.raises(Unroutable):
            await device.publish(REPLY.name, b"late", to_queue=True)
        assert await device.depth(REPLY.name) is None

    virtually(main())


def test_all_of_a_connections_work_goes_to_others_not_to_its_own_second_consumer() -> None:
    async def main() -> None:
        broker, worker, first = await started()
        second = await worker.subscribe(SHARD.name, prefetch=10)
        other = await broker.connect("worker-2").subscribe(SHARD.name, prefetch=10)
        await broker.connect("phone-1").publish(KEY, b"a")
        assert await read(first, 1) == [("a", False)]
        broker.drop(worker)
        assert await read(other, 1) == [("a", True)]
        with pytest.raises(LinkError):
            await anext(aiter(second))

    virtually(main())


class Drawn:
    """Random verdicts from a seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def on_publish(self, principal: str, target: str, frame: bytes) -> Verdict:
        fault = self._rng.choices([*Fault], weights=(90, 3, 3, 4))[0]
        return Verdict(fault=fault, delay_s=self._rng.choice((0, 0, 0, 0.5, 3)))

    def on_deliver(self, principal: str, queue: str, delivery: Delivery) -> Verdict:
        return self.on_publish(principal, queue, b"")


async def storm(seed: int) -> list[str]:
    """Devices and workers at work under faults, each connecting again when cut; what workers acked."""
    rng = random.Random(seed)
    broker = MemoryBroker(policy=Drawn(rng), delivery_limit=1000)
    history: list[str] = []
    await broker.connect("setup").declare(*topology.worker_queues(shards=2))

    async def device(name: str) -> None:
        transport = broker.connect(name)
        for number in range(20):
            while True:  # at least once
                try:
                    await transport.publish(topology.uplink_key(name, number % 2), b"%d" % number)
                    break
                except LinkError:
                    transport = broker.connect(name)

    async def worker(name: str, shard: int) -> None:
        while True:
            transport = broker.connect(name)
            try:
                subscription = await transport.subscribe(f"spliteasy.shard.{shard:02d}", prefetch=3)
                async for delivery in subscription:
                    await asyncio.sleep(rng.random() / 10)
                    await subscription.ack(delivery)
                    body = bytes(delivery.body).decode()
                    history.append(
                        f"{asyncio.get_running_loop().time():.6f} {name} {delivery.routing_key} {body}"
                    )
            except LinkError:
                await asyncio.sleep(rng.random())

    workers = [asyncio.create_task(worker(f"worker-{n}", n % 2)) for n in range(4)]
    await asyncio.gather(*(device(f"phone-{n}") for n in range(3)))
    await asyncio.sleep(3600)  # virtual: long enough for the workers to empty the queues
    for task in workers:
        task.cancel()
    return history


@pytest.mark.parametrize("seed", range(5))
def test_under_faults_everything_arrives_and_the_same_seed_gives_the_same_run(seed: int) -> None:
    history = run_virtually(storm(seed))
    assert run_virtually(storm(seed)) == history
    received = {tuple(line.split()[2:]) for line in history}
    expected = {(f"s.phone-{d}.{n % 2:02d}", str(n)) for d in range(3) for n in range(20)}
    assert received == expected
    assert len(history) > len(expected), "the faults have made some arrive twice"


async def test_queues_that_have_expired_do_not_pile_up() -> None:
    """Each connection of a device has a reply queue of its own: keys are not matched with those."""
    broker = MemoryBroker()
    transport = broker.connect("phone-1")
    short = [replace(topology.reply_queue("phone-1", f"{n:016}"), expires_s=0.0) for n in range(1000)]
    await transport.declare(SHARD)
    for queue in short:
        await transport.declare(queue)
    assert len(broker._queues) <= 2 * LEAST_SWEPT
    assert list(broker._bound) == [SHARD.name]
