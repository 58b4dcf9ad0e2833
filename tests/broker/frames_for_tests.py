"""Frames of random bodies, and forged ones."""

from __future__ import annotations

import hashlib
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
        "magic": b"SPEF", "version": 1, "flags": 1, "zero": 0, "id": bytes.fromhex(ID), "index": 0,
        "chunk_bytes": 4, "total": 4, "digest": hashlib.blake2b(digest_size=16).digest(),
        "reserved": bytes(12), "payload": b"body",
    }  # fmt: skip
    *header, payload = {**fields, **changes}.values()
    packed = struct.pack("<4sBBH8sIIQ16s12s", *header)
    assert isinstance(payload, bytes)
    return packed + struct.pack("<I", zlib.crc32(payload, zlib.crc32(packed))) + payload
