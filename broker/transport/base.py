"""The transport seam: what carries frames between devices and workers.

A transport is *one life of one connection*: when it is lost, every call on it raises `LinkError` and
its owner makes a new one (`broker.transport.backoff` paces that). It moves opaque frames
(`broker.protocol.frames` cuts messages into them) and adds only a principal and a routing key to each
delivery.
Implementations: `broker.amqp.connection` (RabbitMQ), `broker.transport.in_process` (one process),
`broker.gateway.client` (a WebSocket, for devices only: it refuses what only workers do).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from spliteasy.errors import LinkError

Frame = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One frame as received. `tag` is the subscription's own, for `ack`."""

    body: Frame
    routing_key: str
    principal: str | None
    """The account that the broker authenticated as the sender (AMQP `user_id`), or None where the sender did
    not say."""
    redelivered: bool = False
    copied: bool = False
    """True where the publisher used CC or BCC headers, which can bypass topic permissions."""
    headers: Mapping[str, str] = field(default_factory=dict)
    tag: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue to declare. `bindings` are routing-key patterns on the uplink exchange."""

    name: str
    quorum: bool = False
    single_active: bool = False
    expires_s: float | None = None
    bindings: tuple[str, ...] = ()
    dead_letters: bool = False
    """The broker itself moves messages that it gives up on to the dead queue."""
    max_bytes: int | None = None
    """Oldest dropped first beyond this many bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """The contents of a queue: messages ready for delivery, and consumers (of a single-active queue, only the
    active one is counted)."""

    messages: int
    consumers: int


class Subscription(Protocol):
    """Deliveries of one queue, at most `prefetch` of them unacknowledged.

    Iterating raises `LinkError` when the connection is lost or the server cancelled the consumer, and
    stops after `cancel`. What is not acknowledged when the subscription ends is delivered again.
    """

    def __aiter__(self) -> AsyncIterator[Delivery]: ...

    async def ack(self, delivery: Delivery) -> None:
        """Forget the delivery. Raises `LinkError` where it can no longer be acknowledged."""
        ...

    async def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Move the delivery to the dead queue with the reason, confirmed, then acknowledge it."""
        ...

    async def cancel(self) -> None:
        """Stop new deliveries (those waiting locally go back); what was handed out can still be acked."""
        ...

    async def close(self) -> None:
        """End the subscription: unacknowledged deliveries go back to the queue. Never raises."""
        ...


class Transport(Protocol):
    """One connection to a broker."""

    @property
    def principal(self) -> str:
        """The account this connection authenticated as."""
        ...

    async def declare(self, *queues: Queue) -> None:
        """Declare the queues, and the exchanges and bindings they need. Idempotent."""
        ...

    async def publish(
        self,
        routing_key: str,
        frame: Frame,
        *,
        to_queue: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Publish to the uplink exchange, or (`to_queue`) straight to the queue of that name.

        Returns once the broker confirmed. A broker that ends may lose the frame all the same, with the queue
        that holds it: who needs an answer asks again. Raises `LinkError` where the outcome is unknown
        (the frame may still arrive) and `Unroutable` where no queue took it.
        """
        ...

    async def subscribe(self, queue: str, *, prefetch: int, exclusive: bool = False) -> Subscription:
        """Read a queue. With `exclusive` nobody else may read it; raises `LinkError` where somebody does."""
        ...

    async def is_as_declared(self, queue: Queue) -> bool:
        """Return whether the queue is there, and just as `declare` makes it. One that is otherwise is
        deleted."""
        ...

    async def depth(self, queue: str) -> Depth | None:
        """Return what the queue holds, or None where it does not exist."""
        ...

    async def delete(self, queue: str) -> None:
        """Delete the queue with what it holds; no error where it does not exist."""
        ...

    async def wait_lost(self) -> None:
        """Return when the connection is lost or closed."""
        ...

    @property
    def lost(self) -> LinkError | None:
        """Why the connection was lost or closed; None while it lives."""
        ...

    async def close(self) -> None:
        """Close. Never raises; what is unacknowledged is delivered again to others."""
        ...
