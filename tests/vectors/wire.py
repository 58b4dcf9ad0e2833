"""Vectors of envelopes and frames: bytes that must be made alike, and bytes that must be refused."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import torch

from broker.protocol import envelope
from broker.protocol.frames import to_frames
from broker.protocol.messages import AnyMessage, Value
from tests.broker import frames_for_tests, messages_for_tests

ID = "0123456789abcdef"
_ROWS = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 4
VALUES: tuple[tuple[str, tuple[Value, ...]], ...] = (
    ("nothing", ()),
    ("null and integers", (None, 0, -7, 2**53 - 1)),
    ("float32", (_ROWS,)),
    ("float32 in another order of dimensions", (_ROWS.t(),)),
    ("a scalar and an empty tensor", (torch.tensor(1.5), torch.empty(0, 3))),
    ("integers and booleans", (torch.tensor([1, -2], dtype=torch.int32), torch.tensor([True, False]))),
    ("narrow floats", (_ROWS.to(torch.float16), _ROWS.to(torch.bfloat16), _ROWS.double())),
    ("bytes and long integers", (torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([2**62]))),
)


def envelopes() -> dict[str, Any]:
    """Each kind of message, and each kind of value."""
    messages = messages_for_tests.examples((_ROWS, 4, None))
    return {
        "messages": [{"kind": message.kind, **_told(message)} for message in messages],
        "values": [{"name": name, **_told(messages_for_tests.carrier(*values))} for name, values in VALUES],
        "refused": [{"why": why, "bytes": data.hex()} for why, data in _malformed_envelopes()],
    }


def _told(message: AnyMessage) -> dict[str, Any]:
    data = envelope.encode(message)
    return {"header": messages_for_tests.header_of(data), "bytes": data.hex()}


def _malformed_envelopes() -> list[tuple[str, bytes]]:
    good = envelope.encode(messages_for_tests.carrier(_ROWS))
    header = messages_for_tests.header_of(good)
    (length,) = struct.unpack_from("<I", good, 8)
    data = good[-(-(12 + length) // 64) * 64 :]

    def with_slot(**changes: Any) -> bytes:
        return messages_for_tests.forge({**header, "v": [{**header["v"][0], **changes}]}, data)

    def with_field(**changes: Any) -> bytes:
        return messages_for_tests.forge({**header, "m": {**header["m"], **changes}}, data)

    return [
        ("another magic", b"SPEX" + good[4:]),
        ("another version", good[:4] + struct.pack("<H", 2) + good[6:]),
        ("cut short", good[:-1]),
        ("a byte too many", good + b"\0"),
        ("a header that is not JSON", messages_for_tests.forge(None, raw=b"{")),
        ("a header with one more key", messages_for_tests.forge({**header, "x": 1}, data)),
        ("an unknown dtype", with_slot(dtype="float8")),
        ("a length that is not the shape's", with_slot(length=20)),
        ("an offset that leaves a gap", with_slot(offset=64)),
        ("strides that leave gaps", with_slot(strides=[6, 1])),
        ("an integer beyond 2^53", messages_for_tests.forge({**header, "v": [2**53]})),
        ("a number that is no integer", messages_for_tests.forge({**header, "v": [1.0]})),
        ("a field that no message has", with_field(surprise=1)),
        ("a kind that does not exist", with_field(kind="HELLO")),
        ("a step that is text", with_field(step="7")),
        ("a session that is no name", with_field(session="digits")),
    ]


def frames() -> dict[str, Any]:
    """Bodies and their frames, with and without bytes that the other side has."""
    body = bytes(n * 7 % 256 for n in range(250))
    cases: list[tuple[bytes, int, tuple[tuple[int, int], ...]]] = [
        (b"body", 100, ()),
        (body, 250, ()),
        (body, 100, ()),
        (body, 64, ((0, 100), (130, 140))),
        (body, 100, ((0, 249),)),
        (body, 100, ((200, 250),)),
    ]
    return {
        "cut": [
            {
                "body": data.hex(),
                "message_id": ID,
                "chunk_bytes": chunk_bytes,
                "skip": skip,
                "frames": [
                    frame.hex()
                    for frame in to_frames(data, message_id=ID, chunk_bytes=chunk_bytes, skip=skip)
                ],
            }
            for data, chunk_bytes, skip in cases
        ],
        "refused": [{"why": why, "bytes": data.hex()} for why, data in _malformed_frames()],
    }


def _malformed_frames() -> list[tuple[str, bytes]]:
    forge = frames_for_tests.forge
    wrong = bytearray(forge())
    wrong[-1] ^= 1
    return [
        ("another magic", forge(magic=b"SPEX")),
        ("version 1", forge(version=1)),
        ("reserved bytes that are not zero", forge(reserved=b"\1" + bytes(19))),
        ("no payload", forge(payload=b"", total=4)),
        ("a payload that ends behind the body", forge(total=3)),
        ("a payload larger than chunk_bytes", forge(chunk_bytes=3)),
        ("a body of 2^53 bytes", forge(total=2**53, body_crc=0)),
        ("a checksum of the body in the middle", forge(total=8)),
        ("a wrong checksum of the body", forge(body_crc=zlib.crc32(b"body") ^ 1)),
        ("a flipped bit", bytes(wrong)),
    ]
