"""The packets between a device and a gateway: one in each binary message of a WebSocket.

A packet is a header of 16 bytes, a text and a body. All numbers are little-endian and unsigned:

     0   1   kind
     1   1   flags
     2   2   bytes of the text
     4   4   number
     8   4   argument
    12   4   zero
    16   …   the text in UTF-8, then zeros up to a multiple of 8 bytes
     …   …   the body: the rest of the message

So a body always begins at a multiple of 8, and a typed array can lie over it. docs/gateway.md has the kinds
and what each field means. What a kind does not use is zero or empty: a packet with anything else is refused,
so that no bytes travel that nobody looks at.
"""

from __future__ import annotations

import struct
from collections.abc import Container
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from broker.transport.base import Frame
from spliteasy.errors import (
    AccountGone,
    AccountRefused,
    LinkDeferred,
    LinkError,
    LinkRefused,
    Unroutable,
    WireError,
)

PROTOCOL: Final = "spliteasy.1"
"""The WebSocket subprotocol: another version of these packets has another name."""

PATH: Final = "/link"
"""The path of a gateway's socket, unless something before it maps another path there."""

HEADER_BYTES: Final = 16
MAX_TEXT_BYTES: Final = 1024
MAX_HINT_BYTES: Final = 1024
MAX_PASSWORD_BYTES: Final = 1024
OVERHEAD_BYTES: Final = HEADER_BYTES + MAX_TEXT_BYTES
"""The most bytes that a packet has beside its body."""

_HEADER = struct.Struct("<BBHIII")
_ALIGNMENT = 8


class Kind(IntEnum):
    """The kinds of packets: up to 15 from a device, from 16 on from a gateway."""

    HELLO = 1
    """Text: the account. Body: its password in UTF-8. The first packet, once."""
    DECLARE = 2
    """Text: the reply queue to make. Number: of the request."""
    SUBSCRIBE = 3
    """Text: the reply queue to read. Number: of the request and of the subscription. Argument: prefetch."""
    PUBLISH = 4
    """Text: routing key, and after a line break the reply queue. Body: the frame. Number: of the request."""
    ACK = 5
    """Number: of the subscription. Argument: the delivery's tag."""
    END = 6
    """Close a subscription. Number: of the request. Argument: the subscription."""
    WELCOME = 16
    """The account is accepted. Number: bytes of the largest frame. Argument: milliseconds between pings."""
    DONE = 17
    """Number: of a request that was carried out; of a PUBLISH, that the broker confirmed it."""
    FAILED = 18
    """Number: of the request that failed, or 0 where the connection ends. Argument: `Failure`. Text: why.
    Body: what to do."""
    DELIVERY = 19
    """Number: of the subscription. Argument: the tag. Text: routing key and sender. Body: the frame."""
    ENDED = 20
    """Number: of a subscription that the broker ended. Argument, text and body: as of FAILED."""


FROM_DEVICE: Final = frozenset(kind for kind in Kind if kind < Kind.WELCOME)
FROM_GATEWAY: Final = frozenset(Kind) - FROM_DEVICE

EXCLUSIVE: Final = 1
"""Flag of SUBSCRIBE: nobody else may read the queue."""
REDELIVERED: Final = 1
COPIED: Final = 2
"""Flags of DELIVERY."""

_FLAGS: Final = {Kind.SUBSCRIBE: EXCLUSIVE, Kind.DELIVERY: REDELIVERED | COPIED}
_WITH_TEXT: Final = {
    Kind.HELLO, Kind.DECLARE, Kind.SUBSCRIBE, Kind.PUBLISH, Kind.FAILED, Kind.DELIVERY, Kind.ENDED,
}  # fmt: skip
_BODY_LIMITS: Final = {
    Kind.HELLO: MAX_PASSWORD_BYTES,
    Kind.FAILED: MAX_HINT_BYTES,
    Kind.ENDED: MAX_HINT_BYTES,
}
_FRAMES: Final = {Kind.PUBLISH, Kind.DELIVERY}
_WITH_ARGUMENT: Final = {
    Kind.SUBSCRIBE, Kind.ACK, Kind.END, Kind.WELCOME, Kind.FAILED, Kind.DELIVERY, Kind.ENDED,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One message of the WebSocket."""

    kind: Kind
    flags: int = 0
    number: int = 0
    argument: int = 0
    text: str = ""
    body: Frame = b""


def encode_packet(packet: Packet) -> bytes:
    """The bytes of one message."""
    text = packet.text.encode()
    header = _HEADER.pack(packet.kind, packet.flags, len(text), packet.number, packet.argument, 0)
    return b"".join((header, text, bytes(-len(text) % _ALIGNMENT), packet.body))


def parse_packet(message: bytes, kinds: Container[Kind], *, frame_bytes: int) -> Packet:
    """Return the packet in a message; its body is a view of it.

    Raises `WireError` for anything that `encode_packet` would not have made, for a kind that is not among
    `kinds`, and for a frame of more than `frame_bytes`.
    """
    if len(message) < HEADER_BYTES:
        raise WireError(f"a packet of {len(message)} bytes, and its header has {HEADER_BYTES}")
    number_of_kind, flags, text_bytes, number, argument, zero = _HEADER.unpack_from(message)
    if number_of_kind not in kinds:
        raise WireError(f"a packet of kind {number_of_kind} is not expected here")
    kind = Kind(number_of_kind)
    body_at = HEADER_BYTES + text_bytes + -text_bytes % _ALIGNMENT
    if text_bytes > (MAX_TEXT_BYTES if kind in _WITH_TEXT else 0) or body_at > len(message):
        raise WireError(f"{kind.name} has a text of {text_bytes} bytes")
    text_end = HEADER_BYTES + text_bytes
    if zero or any(message[text_end:body_at]) or flags & ~_FLAGS.get(kind, 0):
        raise WireError(f"{kind.name} has bits where none belong")
    if argument and kind not in _WITH_ARGUMENT:
        raise WireError(f"{kind.name} has an argument, which it does not use")
    body_limit = frame_bytes if kind in _FRAMES else _BODY_LIMITS.get(kind, 0)
    if len(message) - body_at > body_limit:
        raise WireError(f"{kind.name} has a body of {len(message) - body_at} bytes, at most {body_limit}")
    try:
        text = str(memoryview(message)[HEADER_BYTES:text_end], "utf-8")
    except UnicodeDecodeError:
        raise WireError(f"{kind.name} has a text that is not UTF-8") from None
    body = memoryview(message)[body_at:]
    return Packet(kind=kind, flags=flags, number=number, argument=argument, text=text, body=body)


# Errors ---------------------------------------------------------------------------------------------


class Failure(IntEnum):
    """The kind of an error on the wire: what a device may do about it."""

    LOST = 1
    DEFERRED = 2
    REFUSED = 3
    ACCOUNT_REFUSED = 4
    ACCOUNT_GONE = 5
    UNROUTABLE = 6


_ERRORS: Final[dict[int, type[LinkError]]] = {
    Failure.LOST: LinkError,
    Failure.DEFERRED: LinkDeferred,
    Failure.REFUSED: LinkRefused,
    Failure.ACCOUNT_REFUSED: AccountRefused,
    Failure.ACCOUNT_GONE: AccountGone,
    Failure.UNROUTABLE: Unroutable,
}
_FAILURES: Final = {error: failure for failure, error in _ERRORS.items()}


def failure_packet(kind: Kind, number: int, error: LinkError) -> Packet:
    """FAILED or ENDED for an error of ours."""
    return Packet(
        kind=kind,
        number=number,
        argument=_FAILURES.get(type(error), Failure.LOST),
        text=_cut(error.message, MAX_TEXT_BYTES),
        body=_cut(error.hint or "", MAX_HINT_BYTES).encode(),
    )


def error_of(packet: Packet) -> LinkError:
    """The error that a FAILED or ENDED tells of; a kind of a newer gateway reads as a lost connection."""
    kind = _ERRORS.get(packet.argument, LinkError)
    return kind(packet.text, hint=bytes(packet.body).decode("utf-8", "replace") or None)


def _cut(text: str, limit: int) -> str:
    """The text, shortened so that it has at most `limit` bytes."""
    return text.encode()[:limit].decode("utf-8", "ignore")
