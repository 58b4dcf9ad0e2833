"""Messages between devices and workers, and the ways they travel: envelope, frames, topology, transports.

What needs torch loads on first use, so that a command which only looks at a broker starts without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from broker.transport.backoff import full_jitter
from broker.transport.base import Delivery, Depth, Frame, Queue, Subscription, Transport
from spliteasy.errors import LinkError, LinkRefused, Unroutable, WireError
from spliteasy.runtime.urls import scheme_of

if TYPE_CHECKING:
    from broker.protocol.assembler import Assembled, Assembler, AssemblerLimits, OverBudget, Partial
    from broker.protocol.envelope import (
        EnvelopeLimits,
        decode,
        decode_tensor,
        encode,
        encode_parts,
        encode_tensor,
    )
    from broker.protocol.frames import to_frames

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

_HOMES = {
    **dict.fromkeys(("Assembled", "Assembler", "AssemblerLimits", "OverBudget", "Partial"), "assembler"),
    **dict.fromkeys(("EnvelopeLimits", "decode", "decode_tensor"), "envelope"),
    **dict.fromkeys(("encode", "encode_parts", "encode_tensor"), "envelope"),
    "to_frames": "frames",
}
"""The module of `broker.protocol` that has each name."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"broker.protocol.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


async def connect(url: str, *, heartbeat_s: int | None = None) -> Transport:
    """Connect to the broker at `url` (`amqp://` or `amqps://`), or to a gateway (`ws://` or `wss://`).

    RabbitMQ gives up a client that is silent for two to three times `heartbeat_s` (None: as `AmqpOptions`).

    Raises `LinkError` where it can't be reached, `LinkDeferred` where it says no for now, and `LinkRefused`
    where it, or the URL, says no.
    """
    scheme = scheme_of(url)
    if scheme in ("amqp", "amqps"):
        # Here, not above: what needs no network must not need its library.
        from broker.amqp.connection import connect as connect_amqp
        from broker.amqp.options import AmqpOptions

        options = AmqpOptions() if heartbeat_s is None else AmqpOptions(heartbeat_s=heartbeat_s)
        return await connect_amqp(url, options=options)
    if scheme in ("ws", "wss"):
        try:
            from broker.gateway.client import connect as connect_gateway
        except ModuleNotFoundError as missing:
            raise LinkRefused(
                f"connecting to a gateway needs the package {missing.name}",
                hint="pip install 'spliteasy[gateway]'",
            ) from None
        return await connect_gateway(url)
    raise LinkRefused(
        f"no transport for {scheme} URLs" if scheme else "the broker's URL names no transport",
        hint="use amqp://user:password@host:port/vhost, or wss://… for a gateway",
    )
