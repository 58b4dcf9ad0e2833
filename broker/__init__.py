"""What travels between devices and workers, and how: messages, envelope, frames, topology, transports."""

from __future__ import annotations

from broker.assembler import Assembled, Assembler, AssemblerLimits, OverBudget, Partial
from broker.backoff import full_jitter
from broker.chunks import to_frames
from broker.envelope import EnvelopeLimits, decode, decode_tensor, encode, encode_parts, encode_tensor
from broker.transport import Delivery, Depth, Frame, Queue, Subscription, Transport
from spliteasy.errors import LinkError, LinkRefused, Unroutable, WireError

__all__ = [
    "Assembled",
    "Assembler",
    "AssemblerLimits",
    "Delivery",
    "Depth",
    "EnvelopeLimits",
    "Frame",
    "LinkError",
    "LinkRefused",
    "OverBudget",
    "Partial",
    "Queue",
    "Subscription",
    "Transport",
    "Unroutable",
    "WireError",
    "connect",
    "decode",
    "decode_tensor",
    "encode",
    "encode_parts",
    "encode_tensor",
    "full_jitter",
    "to_frames",
]


async def connect(url: str, *, heartbeat_s: int | None = None) -> Transport:
    """A connection to the broker at `url` (`amqp://` or `amqps://`).

    RabbitMQ gives up a client that is silent for two to three times `heartbeat_s` (None: as `AmqpOptions`).

    Raises `LinkError` where it can't be reached, `LinkDeferred` where it says no for now, and `LinkRefused`
    where it, or the URL, says no.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in ("amqp", "amqps"):
        # Here, not above: what needs no network must not need its library.
        from broker.amqp import AmqpOptions
        from broker.amqp import connect as connect_amqp

        options = AmqpOptions() if heartbeat_s is None else AmqpOptions(heartbeat_s=heartbeat_s)
        return await connect_amqp(url, options=options)
    raise LinkRefused(
        f"no transport for {scheme or 'an empty'} URLs", hint="use amqp://user:password@host:port/vhost"
    )
