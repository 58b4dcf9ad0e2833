"""Queues as RabbitMQ declares them."""

from __future__ import annotations

from typing import Any

from aiormq.channel import Channel

from broker.transport import topology
from broker.transport.base import Queue


async def declare_queue(channel: Channel, queue: Queue, *, delivery_limit: int) -> None:
    """Make the queue with its exchanges and bindings; the same again changes nothing."""
    if queue.bindings:
        await channel.exchange_declare(topology.UPLINK, exchange_type="topic", durable=True)
    if queue.dead_letters or queue.name == topology.DEAD:
        await channel.exchange_declare(topology.DEAD, exchange_type="fanout", durable=True)
    await channel.queue_declare(queue.name, durable=True, arguments=queue_arguments(queue, delivery_limit))
    for pattern in queue.bindings:
        await channel.queue_bind(queue.name, topology.UPLINK, routing_key=pattern)
    if queue.name == topology.DEAD:
        await channel.queue_bind(queue.name, topology.DEAD)


def queue_arguments(queue: Queue, delivery_limit: int) -> dict[str, Any]:
    """The queue's arguments. What newer brokers default otherwise is said in full."""
    arguments: dict[str, Any] = {"x-queue-type": "quorum" if queue.quorum else "classic"}
    if queue.quorum:
        arguments["x-delivery-limit"] = delivery_limit
    if queue.single_active:
        arguments["x-single-active-consumer"] = True
    if queue.dead_letters:
        arguments["x-dead-letter-exchange"] = topology.DEAD
    if queue.expires_s is not None:
        arguments["x-expires"] = max(1, round(queue.expires_s * 1000))
    if queue.max_bytes is not None:
        arguments["x-max-length-bytes"] = queue.max_bytes
        arguments["x-overflow"] = "drop-head"
    return arguments
