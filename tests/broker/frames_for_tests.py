"""Frames of random bodies, and forged ones."""

from __future__ import annotations

import random
import struct
import zlib

from broker.protocol.frames import to_frames

ID = "0123456789abcdef"


def frames_of(size: int, *, message_id: str = ID, chunk_bytes: int = 100, seed: int = 0) -> list[bytes]:
    return list(
        to_frames(random.Random(seed).randbytes(size), message_id=message_id, chunk_bytes=chunk_bytes)
    )


def forge(**changes: int | bytes) -> bytes:
    """A single frame with chosen fields and a checksum that is right."""
    fields: dict[str, int | bytes] = {
        "magic": b"SPEF", "version": 2, "zero": bytes(3), "id": bytes.fromhex(ID), "offset": 0,
        "total": 4, "chunk_bytes": 4, "body_crc": zlib.crc32(b"body"),
        "reserved": bytes(20), "payload": b"body",
    }  # fmt: skip
    *header, payload = {**fields, **changes}.values()
    packed = struct.pack("<4sB3s8sQQII20s", *header)
    assert isinstance(payload, bytes)
    return packed + struct.pack("<I", zlib.crc32(payload, zlib.crc32(packed))) + payload
