"""What every transport must do: one suite for the in-process broker, RabbitMQ, and gateways before both.

Behind a gateway are devices only: what workers do (`hub`) is tested on the brokers themselves.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import TypeVar

import pytest

from broker.transport import topology
from broker.transport.base import Delivery, Depth, Frame, Queue, Subscription, Transport
from spliteasy.errors import LinkError, LinkRefused, Unroutable
from tests.broker.conftest import DELIVERY_LIMIT, Hub, Lane

SHARD = topology.shard_queue(3)
KEY = topology.uplink_key("phone-1", 3)
REPLY = topology.reply_slot("phone-1", 5)
MIB = 1 << 20
T = TypeVar("T")


async def soon(awaitable: Awaitable[T]) -> T:
    """Await with a deadline that only a broken transport meets."""
    async with asyncio.timeout(20):
        return await awaitable


async def take(subscription: Subscription, number: int) -> list[Delivery]:
    return [await soon(anext(aiter(subscription))) for _ in range(number)]


def bodies(deliveries: list[Delivery]) -> list[bytes]:
    return [bytes(delivery.body) for delivery in deliveries]


async def worker(hub: Hub, *queues: Queue, name: str = "worker-1") -> Transport:
    """A connection that has declared these queues, or the shard's, with the type that the test is run for."""
    transport = await hub.connect(name)
    await transport.declare(*(_typed(hub, queue) for queue in queues or (SHARD,)))
    return transport


def _typed(hub: Hub, queue: Queue) -> Queue:
    return replace(queue, quorum=queue.quorum and hub.kind is topology.QueueType.QUORUM)


async def ready(transport: Transport, queue: str = SHARD.name) -> int:
    """Return how many frames wait there. (The broker decides how soon a consumer that left is no longer
    counted.)"""
    depth = await transport.depth(queue)
    assert depth is not None
    return depth.messages


async def publish(transport: Transport, *frames: bytes, key: str = KEY) -> None:
    for frame in frames:
        await transport.publish(key, frame)


async def refill(queue: Queue, transport: Transport, number: int) -> list[bytes]:
    frames = [b"frame %d" % index for index in range(number)]
    await publish(transport, *frames)
    return frames


# Routing ------------------------------------------------------------------------------------------


async def test_a_delivery_says_who_sent_it_and_by_which_key(any_hub: Hub) -> None:
    consumer = await worker(any_hub)
    device = await any_hub.connect("phone-1")
    assert device.principal == "phone-1"
    subscription = await consumer.subscribe(SHARD.name, prefetch=1)
    await device.publish(KEY, b"body", headers={topology.REPLY_TO: REPLY.name})
    (delivery,) = await take(subscription, 1)
    assert bytes(delivery.body) == b"body"
    assert delivery.routing_key == KEY
    assert delivery.principal == "phone-1"
    assert delivery.headers == {topology.REPLY_TO: REPLY.name}
    assert not delivery.redelivered
    assert not delivery.copied


async def test_a_key_leads_to_the_queues_bound_to_it_only(hub: Hub) -> None:
    consumer = await worker(hub, *topology.worker_queues(shards=2))
    await publish(consumer, b"0", key="s.phone-1.00")
    await publish(consumer, b"1", key="s.phone-2.01")
    await publish(consumer, b"front", key="s.phone-2.front")
    for name, body in (
        (topology.FRONT, b"front"),
        ("spliteasy.shard.00", b"0"),
        ("spliteasy.shard.01", b"1"),
    ):
        subscription = await consumer.subscribe(name, prefetch=5)
        assert bodies(await take(subscription, 1)) == [body]
        assert await consumer.depth(name) == Depth(messages=0, consumers=1)


@pytest.mark.parametrize("key", ["s.phone-1.99", "s.phone-1.03.more", "phone-1.03", "x"])
async def test_a_frame_that_no_queue_takes_is_an_error(hub: Hub, key: str) -> None:
    consumer = await worker(hub)
    with pytest.raises(Unroutable):
        await consumer.publish(key, b"lost")
    await consumer.publish(KEY, b"goes on")


async def test_publishing_before_anything_is_declared_is_unroutable(any_hub: Hub) -> None:
    device = await any_hub.connect("phone-1")
    with pytest.raises(Unroutable):
        await device.publish(KEY, b"early")
    await worker(any_hub)
    await device.publish(KEY, b"in time")


async def test_publishing_straight_to_a_queue(any_hub: Hub) -> None:
    device = await any_hub.connect("phone-1")
    await device.declare(REPLY)
    subscription = await device.subscribe(REPLY.name, prefetch=10)
    consumer = await any_hub.connect("worker-1")
    await consumer.publish(REPLY.name, b"reply", to_queue=True)
    (delivery,) = await take(subscription, 1)
    assert (bytes(delivery.body), delivery.principal, delivery.copied) == (b"reply", "worker-1", False)
    with pytest.raises(Unroutable):
        await consumer.publish(REPLY.name + "0", b"reply", to_queue=True)


async def test_frames_of_any_buffer_type(any_hub: Hub) -> None:
    consumer, device = await worker(any_hub), await any_hub.connect("phone-1")
    frames: list[Frame] = [b"abc", bytearray(b"abc"), memoryview(b"xabc")[1:]]
    for frame in frames:
        await device.publish(KEY, frame)
    subscription = await consumer.subscribe(SHARD.name, prefetch=5)
    assert bodies(await take(subscription, 3)) == [b"abc"] * 3


async def test_a_frame_is_copied_before_publish_returns(any_hub: Hub) -> None:
    consumer, device = await worker(any_hub), await any_hub.connect("phone-1")
    frame = bytearray(b"before")
    await device.publish(KEY, frame)
    frame[:] = b"after!"
    subscription = await consumer.subscribe(SHARD.name, prefetch=5)
    assert bodies(await take(subscription, 1)) == [b"before"]


async def test_large_frames_arrive_whole(any_hub: Hub) -> None:
    consumer, device = await worker(any_hub), await any_hub.connect("phone-1")
    subscription = await consumer.subscribe(SHARD.name, prefetch=1)
    for size in (8 * MIB, 1, 131072 - 8, 131072):
        frame = os.urandom(size)
        await device.publish(KEY, frame)
        (delivery,) = await take(subscription, 1)
        assert bytes(delivery.body) == frame
        await subscription.ack(delivery)


async def test_a_frame_over_the_brokers_limit_is_refused_and_harms_nothing(any_hub: Hub) -> None:
    consumer, device = await worker(any_hub), await any_hub.connect("phone-1")
    with pytest.raises(LinkRefused):
        await device.publish(KEY, bytes(16 * MIB + 1))
    await device.publish(KEY, b"small")
    assert await consumer.depth(SHARD.name) == Depth(messages=1, consumers=0)


async def test_frames_of_one_sender_keep_their_order(any_hub: Hub) -> None:
    consumer, device = await worker(any_hub), await any_hub.connect("phone-1")
    subscription = await consumer.subscribe(SHARD.name, prefetch=50)
    frames = await refill(SHARD, device, 200)
    got = []
    for _ in frames:
        (delivery,) = await take(subscription, 1)
        got.append(bytes(delivery.body))
        await subscription.ack(delivery)
    assert got == frames


async def test_many_publish_at_once_and_each_frame_arrives_once(any_hub: Hub) -> None:
    consumer = await worker(any_hub)
    subscription = await consumer.subscribe(SHARD.name, prefetch=20)
    senders = [await any_hub.connect(f"phone-{n}") for n in range(3)]
    frames = [b"%d" % index for index in range(300)]
    async with asyncio.TaskGroup() as group:
        for index, frame in enumerate(frames):
            group.create_task(senders[index % 3].publish(f"s.phone-{index % 3}.03", frame))
        received = []
        for _ in frames:
            (delivery,) = await take(subscription, 1)
            received.append(bytes(delivery.body))
            await subscription.ack(delivery)
    assert sorted(received) == sorted(frames)
    assert await consumer.depth(SHARD.name) == Depth(messages=0, consumers=1)


# Prefetch, acks and redelivery ----------------------------------------------------------------------


async def test_prefetch_bounds_what_is_unacknowledged(reading: Lane) -> None:
    consumer = await reading.reader()
    frames = await reading.refill(5)
    subscription = await consumer.subscribe(reading.queue.name, prefetch=2)
    first, second = await take(subscription, 2)
    assert await reading.depth() == Depth(messages=3, consumers=1)
    await subscription.ack(second)
    (third,) = await take(subscription, 1)
    assert bodies([first, second, third]) == frames[:3]
    assert await reading.depth() == Depth(messages=2, consumers=1)


async def test_what_was_not_acknowledged_comes_again_in_order_and_first(reading: Lane) -> None:
    consumer = await reading.reader()
    frames = await reading.refill(6)
    subscription = await consumer.subscribe(reading.queue.name, prefetch=4)
    taken = await take(subscription, 3)  # a fourth waits locally
    await subscription.ack(taken[1])
    await subscription.close()
    again = await take(await consumer.subscribe(reading.queue.name, prefetch=10), 5)
    assert bodies(again) == [frames[0], *frames[2:]]
    # Which of the last two had been on its way to the first consumer is the broker's affair.
    assert all(delivery.redelivered for delivery in again[:3])


async def test_acks_of_many_leave_out_what_is_open_between_them(reading: Lane) -> None:
    consumer = await reading.reader()
    frames = await reading.refill(9)
    subscription = await consumer.subscribe(reading.queue.name, prefetch=64)
    taken = await take(subscription, 9)
    await asyncio.gather(*(subscription.ack(taken[place]) for place in (5, 1, 2, 7, 4)))
    await subscription.close()
    again = await take(await consumer.subscribe(reading.queue.name, prefetch=64), 4)
    assert bodies(again) == [frames[place] for place in (0, 3, 6, 8)]


async def test_an_acknowledged_delivery_never_comes_again(reading: Lane) -> None:
    consumer = await reading.reader()
    await reading.put(b"once", b"twice")
    subscription = await consumer.subscribe(reading.queue.name, prefetch=1)
    (delivery,) = await take(subscription, 1)
    await subscription.ack(delivery)
    await consumer.close()
    successor = await reading.reader()
    assert bodies(await take(await successor.subscribe(reading.queue.name, prefetch=5), 1)) == [b"twice"]


async def test_an_ack_works_once_and_on_its_own_subscription(reading: Lane) -> None:
    consumer = await reading.reader()
    await reading.put(b"x")
    subscription = await consumer.subscribe(reading.queue.name, prefetch=1)
    (delivery,) = await take(subscription, 1)
    with pytest.raises(LinkError):
        await subscription.ack(replace(delivery, tag=delivery.tag + 1))
    await subscription.ack(delivery)
    with pytest.raises(LinkError):
        await subscription.ack(delivery)
    await reading.put(b"y")
    assert bodies(await take(subscription, 1)) == [b"y"]


async def test_cancel_gives_back_what_waits_and_leaves_what_was_handed_out(hub: Hub) -> None:
    consumer = await worker(hub)
    frames = await refill(SHARD, consumer, 4)
    subscription = await consumer.subscribe(SHARD.name, prefetch=3)
    (delivery,) = await take(subscription, 1)
    await subscription.cancel()
    await subscription.cancel()
    with pytest.raises(StopAsyncIteration):
        await anext(aiter(subscription))
    others = await take(await consumer.subscribe(SHARD.name, prefetch=10), 3)
    assert sorted(bodies(others)) == frames[1:]
    await subscription.ack(delivery)
    await subscription.close()
    with pytest.raises(LinkError):
        await subscription.ack(delivery)
    assert await ready(consumer) == 0


async def test_a_reader_stops_when_its_subscription_is_closed(reading: Lane) -> None:
    consumer = await reading.reader()
    subscription = await consumer.subscribe(reading.queue.name, prefetch=1)
    reader = asyncio.ensure_future(anext(aiter(subscription), None))
    await asyncio.sleep(0)
    await subscription.close()
    await subscription.close()
    assert await soon(reader) is None


async def test_a_cancelled_read_takes_nothing(reading: Lane) -> None:
    consumer = await reading.reader()
    subscription = await consumer.subscribe(reading.queue.name, prefetch=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(aiter(subscription))
    await reading.put(b"x")
    assert bodies(await take(subscription, 1)) == [b"x"]


async def test_a_cancelled_ack_is_sent_all_the_same(reading: Lane) -> None:
    consumer = await reading.reader()
    await reading.put(b"x", b"y")
    subscription = await consumer.subscribe(reading.queue.name, prefetch=1)
    (delivery,) = await take(subscription, 1)
    ack = asyncio.create_task(subscription.ack(delivery))
    await asyncio.sleep(0)
    ack.cancel()
    await asyncio.gather(ack, return_exceptions=True)
    assert bodies(await take(subscription, 1)) == [b"y"]


async def test_a_cancelled_publish_leaves_the_connection_whole(any_hub: Hub) -> None:
    consumer, device = await worker(any_hub), await any_hub.connect("phone-1")
    for _ in range(20):
        attempt = asyncio.create_task(device.publish(KEY, bytes(MIB)))
        await asyncio.sleep(0)
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
    await publish(device, b"last")
    subscription = await consumer.subscribe(SHARD.name, prefetch=1)
    body = b""
    while body != b"last":
        (delivery,) = await take(subscription, 1)
        body = bytes(delivery.body)
        assert body in (bytes(MIB), b"last")
        await subscription.ack(delivery)


async def test_nothing_less_than_a_prefetch_of_one(reading: Lane) -> None:
    consumer = await reading.reader()
    with pytest.raises(ValueError, match="prefetch"):
        await consumer.subscribe(reading.queue.name, prefetch=0)


# Several consumers -----------------------------------------------------------------------------------


async def test_a_single_active_queue_serves_one_and_hands_over_in_order(hub: Hub) -> None:
    first, second, third = [await worker(hub, name=f"worker-{n}") for n in range(3)]
    active = await first.subscribe(SHARD.name, prefetch=2)
    next_one = await second.subscribe(SHARD.name, prefetch=2)
    last_one = await third.subscribe(SHARD.name, prefetch=2)
    frames = await refill(SHARD, first, 3)
    (delivery, _) = await take(active, 2)
    await active.ack(delivery)
    assert bodies(await take(active, 1)) == frames[2:]
    await first.close()
    assert bodies(await take(next_one, 2)) == frames[1:]
    await next_one.close()
    assert bodies(await take(last_one, 2)) == frames[1:]


async def test_a_consumer_that_cancels_yields_while_it_finishes_its_work(hub: Hub) -> None:
    first, second = await worker(hub), await worker(hub, name="worker-2")
    leaving = await first.subscribe(SHARD.name, prefetch=1)
    coming = await second.subscribe(SHARD.name, prefetch=1)
    await publish(first, b"old")
    (delivery,) = await take(leaving, 1)
    await leaving.cancel()
    await publish(first, b"new")
    assert bodies(await take(coming, 1)) == [b"new"]
    await leaving.ack(delivery)
    await leaving.close()
    assert await ready(first) == 0


async def test_a_consumer_may_come_back_after_it_left(hub: Hub) -> None:
    first, second = await worker(hub), await worker(hub, name="worker-2")
    for round_number in range(3):
        mine = await first.subscribe(SHARD.name, prefetch=1)
        other = await second.subscribe(SHARD.name, prefetch=1)
        await publish(first, b"%d" % round_number)
        (delivery,) = await take(mine, 1)
        await mine.cancel()
        await mine.ack(delivery)
        await mine.close()
        await publish(first, b"to the other")
        (delivery,) = await take(other, 1)
        await other.ack(delivery)
        await other.close()


async def test_competing_consumers_share_a_queue(hub: Hub) -> None:
    front = topology.front_queue()
    key = topology.uplink_key("phone-1", None)
    transports = [await worker(hub, front, name=f"worker-{n}") for n in range(2)]
    subscriptions = [await transport.subscribe(front.name, prefetch=2) for transport in transports]
    await publish(transports[0], b"a", b"b", b"c", b"d", key=key)
    shares = [bodies(await take(subscription, 2)) for subscription in subscriptions]
    assert sorted(chain(*shares)) == [b"a", b"b", b"c", b"d"]


# Loss -----------------------------------------------------------------------------------------------


async def test_a_lost_connection_is_told_to_all_and_its_work_goes_on_elsewhere(hub: Hub) -> None:
    doomed, successor = await worker(hub), await worker(hub, name="worker-2")
    held = await doomed.subscribe(SHARD.name, prefetch=2)
    waiting = await successor.subscribe(SHARD.name, prefetch=5)
    frames = await refill(SHARD, successor, 4)
    (delivery, _) = await take(held, 2)
    reader = asyncio.ensure_future(anext(aiter(held)))
    watcher = asyncio.create_task(doomed.wait_lost())
    await asyncio.sleep(0)
    hub.cut(doomed)
    await soon(watcher)
    with pytest.raises(LinkError):
        await soon(reader)
    with pytest.raises(LinkError):
        await held.ack(delivery)
    with pytest.raises(LinkError):
        await held.dead_letter(delivery, "too late")
    again = await take(waiting, 4)
    assert bodies(again) == frames
    assert [delivery.redelivered for delivery in again] == [True, True, False, False]


async def test_what_a_lost_connection_held_is_delivered_to_the_next_one(reading: Lane) -> None:
    doomed, frames = await reading.reader(), await reading.refill(3)
    held = await doomed.subscribe(reading.queue.name, prefetch=2)
    delivery, _ = await take(held, 2)
    waiting = asyncio.ensure_future(anext(aiter(held)))
    await asyncio.sleep(0)
    reading.cut(doomed)
    await soon(doomed.wait_lost())
    with pytest.raises(LinkError):
        await soon(waiting)
    with pytest.raises(LinkError):
        await held.ack(delivery)
    successor = await reading.reader()
    again: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(again) < 3:  # the broker may not have noticed at once that the other is gone
            with suppress(LinkError):
                again = await take(await successor.subscribe(reading.queue.name, prefetch=3), 3)
    assert bodies(again) == frames
    assert [delivery.redelivered for delivery in again] == [True, True, False]


async def test_nothing_works_on_a_lost_connection_and_everything_says_so(any_hub: Hub) -> None:
    transport = await any_hub.connect("phone-1")
    any_hub.cut(transport)
    await soon(transport.wait_lost())
    for call in (
        transport.publish(KEY, b"x"),
        transport.declare(SHARD),
        transport.subscribe(SHARD.name, prefetch=1),
        transport.depth(SHARD.name),
        transport.delete(SHARD.name),
    ):
        with pytest.raises(LinkError) as caught:
            await soon(call)
        assert caught.value.retriable
    await transport.close()


async def test_a_connection_lost_while_frames_are_under_way(any_hub: Hub) -> None:
    sender, consumer = await any_hub.connect("phone-1"), await worker(any_hub)
    frames = [b"%d" % index + bytes(MIB) for index in range(8)]
    publishes = [asyncio.create_task(sender.publish(KEY, frame)) for frame in frames]
    await asyncio.sleep(0)
    any_hub.cut(sender)
    outcomes = await soon(asyncio.gather(*publishes, return_exceptions=True))
    assert all(outcome is None or isinstance(outcome, LinkError) for outcome in outcomes), outcomes
    confirmed = sorted(frame for frame, outcome in zip(frames, outcomes, strict=True) if outcome is None)
    await consumer.publish(KEY, b"end")
    subscription = await consumer.subscribe(SHARD.name, prefetch=20)
    arrived: list[bytes] = []
    while arrived[-1:] != [b"end"]:
        arrived += bodies(await take(subscription, 1))
    assert set(confirmed) <= set(arrived) <= {*frames, b"end"}


async def test_close_ends_everything_and_never_fails(reading: Lane) -> None:
    transport = await reading.reader()
    subscription = await transport.subscribe(reading.queue.name, prefetch=1)
    await soon(asyncio.gather(transport.close(), transport.close(), subscription.close()))
    await transport.close()
    await soon(transport.wait_lost())
    with pytest.raises(LinkError):
        await transport.publish(KEY, b"x")
    with pytest.raises(LinkError):
        await transport.subscribe(reading.queue.name, prefetch=1)


async def test_queues_outlive_their_connections(hub: Hub) -> None:
    transport = await worker(hub)
    await publish(transport, b"kept")
    await transport.close()
    successor = await hub.connect("worker-2")
    assert await successor.depth(SHARD.name) == Depth(messages=1, consumers=0)


# Dead letters -----------------------------------------------------------------------------------------


async def test_a_dead_letter_carries_its_reason_and_its_origin(hub: Hub) -> None:
    consumer = await worker(hub, topology.dead_queue(), SHARD)
    device = await hub.connect("phone-1")
    await publish(device, b"poison", b"good")
    subscription = await consumer.subscribe(SHARD.name, prefetch=1)
    (delivery,) = await take(subscription, 1)
    await subscription.dead_letter(delivery, "not a frame")
    assert bodies(await take(subscription, 1)) == [b"good"]
    (dead,) = await take(await consumer.subscribe(topology.DEAD, prefetch=1), 1)
    assert bytes(dead.body) == b"poison"
    assert dead.headers["reason"] == "not a frame"
    assert dead.headers["queue"] == SHARD.name
    assert dead.headers["principal"] == "phone-1"
    assert dead.headers["routing_key"] == KEY


async def test_a_delivery_is_not_lost_where_there_is_no_dead_queue(hub: Hub) -> None:
    consumer = await worker(hub)
    await publish(consumer, b"poison")
    subscription = await consumer.subscribe(SHARD.name, prefetch=1)
    (delivery,) = await take(subscription, 1)
    with pytest.raises(Unroutable):
        await subscription.dead_letter(delivery, "bad")
    await subscription.ack(delivery)


async def test_what_comes_back_too_often_becomes_a_dead_letter(hub: Hub) -> None:
    consumer = await worker(hub, topology.dead_queue(), SHARD)
    await publish(consumer, b"poison")
    dead = await consumer.subscribe(topology.DEAD, prefetch=1)
    for turn in range(DELIVERY_LIMIT + 1):
        subscription = await consumer.subscribe(SHARD.name, prefetch=1)
        (again,) = await take(subscription, 1)
        assert (bytes(again.body), again.redelivered) == (b"poison", turn > 0)
        await subscription.close()
    if hub.kind is topology.QueueType.CLASSIC:  # it counts nothing: workers do
        assert await ready(consumer) == 1
        return
    (letter,) = await take(dead, 1)
    assert bytes(letter.body) == b"poison"
    assert letter.headers["reason"] == "delivery_limit"
    assert letter.headers["queue"] == SHARD.name
    assert await ready(consumer) == 0


# Queues -----------------------------------------------------------------------------------------------


async def test_declaring_again_changes_nothing(hub: Hub) -> None:
    consumer = await worker(hub, *topology.worker_queues(shards=2))
    await publish(consumer, b"x", key="s.phone-1.01")
    await consumer.declare(*topology.worker_queues(2, hub.kind))
    assert await consumer.depth("spliteasy.shard.01") == Depth(messages=1, consumers=0)


async def test_a_queue_that_exists_with_other_arguments_is_refused(hub: Hub) -> None:
    consumer = await worker(hub)
    with pytest.raises(LinkRefused) as caught:
        await consumer.declare(replace(_typed(hub, SHARD), single_active=False))
    assert SHARD.name in str(caught.value)
    with pytest.raises(LinkRefused) as caught:
        await consumer.declare(replace(SHARD, quorum=hub.kind is topology.QueueType.CLASSIC))
    assert SHARD.name in str(caught.value)
    assert "delete" in (caught.value.hint or "")
    await publish(consumer, b"goes on")


async def test_depth_and_delete_of_what_is_not_there(hub: Hub) -> None:
    consumer = await worker(hub)
    assert await consumer.depth("spliteasy.nothing") is None
    await consumer.delete("spliteasy.nothing")
    with pytest.raises(LinkRefused):
        await consumer.subscribe("spliteasy.nothing", prefetch=1)
    await publish(consumer, b"x")
    await consumer.delete(SHARD.name)
    assert await consumer.depth(SHARD.name) is None


async def test_a_queue_deleted_under_its_consumer_ends_the_subscription_only(reading: Lane) -> None:
    consumer, operator = await reading.reader(), await reading.writer()
    subscription = await consumer.subscribe(reading.queue.name, prefetch=1)
    reader = asyncio.ensure_future(anext(aiter(subscription)))
    await asyncio.sleep(0)
    await operator.delete(reading.queue.name)
    with pytest.raises(LinkError):
        await soon(reader)
    await consumer.declare(reading.queue)
    await reading.put(b"x")
    assert bodies(await take(await consumer.subscribe(reading.queue.name, prefetch=1), 1)) == [b"x"]


async def test_a_reply_queue_expires_without_a_reader(hub: Hub) -> None:
    device = await hub.connect("phone-1")
    queue = replace(REPLY, expires_s=0.3)
    await device.declare(queue)
    subscription = await device.subscribe(queue.name, prefetch=100)
    await device.publish(queue.name, b"x", to_queue=True)
    await subscription.close()

    async def publish_for_ever() -> None:  # publishing is no use of a queue; asking for its depth would be
        while True:
            await device.publish(queue.name, b"x", to_queue=True)

    with pytest.raises(Unroutable):
        await soon(publish_for_ever())
    with pytest.raises(LinkRefused):
        await device.subscribe(queue.name, prefetch=1)


async def test_a_reply_queue_with_a_reader_stays(hub: Hub) -> None:
    device = await hub.connect("phone-1")
    queue = replace(REPLY, expires_s=0.1)
    await device.declare(queue)
    subscription = await device.subscribe(queue.name, prefetch=1)
    deadline_s = asyncio.get_running_loop().time() + 0.5
    while asyncio.get_running_loop().time() < deadline_s:
        await device.publish(queue.name, b"x", to_queue=True)
        (delivery,) = await take(subscription, 1)
        await subscription.ack(delivery)


async def test_a_bounded_queue_drops_its_oldest(hub: Hub) -> None:
    queue = replace(REPLY, max_bytes=3000)
    device = await hub.connect("phone-1")
    await device.declare(queue)
    frames = [bytes([index]) * 1000 for index in range(10)]
    for frame in frames:
        await device.publish(queue.name, frame, to_queue=True)
    subscription = await device.subscribe(queue.name, prefetch=10)
    assert bodies(await take(subscription, 3)) == frames[-3:]
    assert await ready(device, queue.name) == 0


async def test_a_queue_that_is_read_alone_is_read_by_nobody_else(any_hub: Hub) -> None:
    device, other = await any_hub.connect("phone-1"), await any_hub.connect("phone-1")
    await device.declare(REPLY)
    subscription = await device.subscribe(REPLY.name, prefetch=1, exclusive=True)
    for exclusive in (True, False):
        with pytest.raises(LinkError) as refused:
            await other.subscribe(REPLY.name, prefetch=1, exclusive=exclusive)
        assert not isinstance(refused.value, LinkRefused), "it may be free again later"
    writer = await worker(any_hub)
    await writer.publish(REPLY.name, b"x", to_queue=True)
    assert bodies(await take(subscription, 1)) == [b"x"]
    await subscription.close()
    again = await other.subscribe(REPLY.name, prefetch=1, exclusive=True)
    assert bodies(await take(again, 1)) == [b"x"]


async def test_a_queue_that_is_not_as_declared_is_deleted(hub: Hub) -> None:
    device, judge = await hub.connect("phone-1"), await worker(hub)
    assert not await judge.is_as_declared(REPLY), "it is not there"
    assert await judge.depth(REPLY.name) is None, "and is not made by asking"
    await device.declare(REPLY)
    assert await judge.is_as_declared(REPLY)
    assert await ready(judge, REPLY.name) == 0
    for other in (
        replace(REPLY, quorum=True, expires_s=None),
        replace(REPLY, expires_s=None),
        replace(REPLY, max_bytes=1 << 40),
        replace(REPLY, dead_letters=True),
    ):
        await device.delete(REPLY.name)
        await device.declare(other)
        assert not await judge.is_as_declared(REPLY)
        assert await judge.depth(REPLY.name) is None
