"""Frames: a message's body cut into pieces that a broker takes. `assembler.py` puts them together again.

A frame is a header of 64 bytes and a payload. All numbers are little-endian:

     0   4   magic "SPEF"
     4   1   version (u8)
     5   1   flags (u8): 1 = the message's last frame
     6   2   zero
     8   8   message id: raw bytes, unique to one body of one sender
    16   4   index of the frame, from 0 (u32)
    20   4   chunk_bytes: payload of every frame but the last (u32); the payload lies at index × chunk_bytes
    24   8   total: bytes of the body (u64, within 2^53)
    32  16   in the last frame, blake2b-16 over the checksums of all the message's frames before it
             (u32 each, in order); zero in the others
    48  12   zero
    60   4   checksum: crc32 of everything else in the frame, header first (u32)

A frame's checksum covers its payload and its place; the last frame's digest covers all checksums, so a
body put together from the frames of two others is found out without hashing it once more.
Frames may arrive in any order and more than once. The same id must name the same bytes: a sender that
encodes anew takes a new id, one that sends again the same bytes keeps it and need not repeat what `held`
says is there.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from broker.protocol.checksum import crc32
from broker.transport.base import Frame
from spliteasy.errors import WireError

MAGIC = b"SPEF"
VERSION = 1
LAST = 1
HEADER_BYTES = 64
FRAME_BYTES = 1 << 20
CHUNK_BYTES = FRAME_BYTES - HEADER_BYTES
MIN_CHUNK_BYTES = 8192
"""Who cuts finer by a slow link, or on another's word, stops here: each message has a cost of its own."""
MAX_CHUNKS = 1 << 16

_HEADER = struct.Struct("<4sBBH8sIIQ16s12s")
_CRC = struct.Struct("<I")
_NO_DIGEST = bytes(16)
_RESERVED = bytes(12)


def to_frames(
    body: Frame | Sequence[Frame],
    *,
    message_id: str,
    chunk_bytes: int = CHUNK_BYTES,
    skip: Container[int] = (),
) -> Iterator[bytes]:
    """The frames of a body, or of the concatenation of its parts: each byte is copied once.

    Frames whose index is in `skip` are left out: the other side has them.

    `message_id` is 16 hexadecimal digits (`new_nonce`). The parts must not change until the last frame.
    """
    parts = [memoryview(body)] if isinstance(body, Frame) else [memoryview(part) for part in body]
    total = sum(part.nbytes for part in parts)
    if not total or not chunk_bytes or -(-total // chunk_bytes) > MAX_CHUNKS:
        raise ValueError(f"{total} bytes can't be cut into chunks of {chunk_bytes}")
    count = -(-total // chunk_bytes)
    seal = hashlib.blake2b(digest_size=16)
    for index, pieces in enumerate(_cut(parts, chunk_bytes)):
        last = index == count - 1
        digest = seal.digest() if last else _NO_DIGEST
        header = frame_header(message_id, index, chunk_bytes, total, last=last, digest=digest)
        checksum = frame_checksum(header, *pieces)
        seal.update(checksum)
        if index not in skip:
            yield b"".join((header, checksum, *pieces))


def payload_digests(body: Sequence[Frame], chunk_bytes: int, *, first: int) -> list[str]:
    """Digests of the payloads of the first frames of a body, whatever its message id: the same bytes in the
    same place have the same."""
    parts = [memoryview(part) for part in body]
    return [payload_digest(*pieces) for pieces in islice(_cut(parts, chunk_bytes), first)]


def payload_digest(*pieces: Frame) -> str:
    """What two payloads are told to be the same by."""
    hasher = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def frame_header(
    message_id: str,
    index: int,
    chunk_bytes: int,
    total: int,
    *,
    last: bool = False,
    digest: bytes = _NO_DIGEST,
) -> bytes:
    """The first 60 bytes of a frame; `digest` stands in the last one."""
    identity = bytes.fromhex(message_id)
    return _HEADER.pack(
        MAGIC, VERSION, LAST * last, 0, identity, index, chunk_bytes, total, digest, _RESERVED
    )


def frame_checksum(header: bytes, *pieces: Frame) -> bytes:
    """The last 4 bytes of a frame's header: over those before, and the payload."""
    crc = crc32(header)
    for piece in pieces:
        crc = crc32(piece, crc)
    return _CRC.pack(crc)


def _cut(parts: list[memoryview], chunk_bytes: int) -> Iterator[list[memoryview]]:
    """Groups of slices, `chunk_bytes` together each but the last."""
    pieces: list[memoryview] = []
    room = chunk_bytes
    for part in parts:
        rest = part.cast("B")
        while rest.nbytes:
            piece, rest = rest[:room], rest[room:]
            pieces.append(piece)
            room -= piece.nbytes
            if not room:
                yield pieces
                pieces, room = [], chunk_bytes
    if pieces:
        yield pieces


# Parsing ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A frame whose checksum and place were found right."""

    message_id: str
    index: int
    chunk_bytes: int
    total: int
    last: bool
    checksum: bytes
    digest: bytes
    payload: memoryview

    @property
    def count(self) -> int:
        """Frames of the message."""
        return -(-self.total // self.chunk_bytes)


def parse_frame(frame: Frame) -> Chunk:
    """Raises `WireError` for anything that `to_frames` would not have made."""
    view = memoryview(frame).cast("B")
    if view.nbytes <= HEADER_BYTES:
        raise WireError("too short to be a frame")
    magic, version, flags, zero, identity, index, chunk_bytes, total, digest, reserved = _HEADER.unpack_from(
        view
    )
    if magic != MAGIC or zero or reserved != _RESERVED or flags & ~LAST:
        raise WireError("not a frame of SplitEasy")
    if version != VERSION:
        raise WireError(f"a frame of version {version}, this side speaks {VERSION}")
    checksum = bytes(view[_HEADER.size : HEADER_BYTES])
    payload = view[HEADER_BYTES:]
    if _CRC.pack(crc32(payload, crc32(view[: _HEADER.size]))) != checksum:
        raise WireError("a frame's checksum is wrong")
    if not chunk_bytes or not 0 < total < 1 << 53 or -(-total // chunk_bytes) > MAX_CHUNKS:
        raise WireError(f"{total} bytes in chunks of {chunk_bytes} are no message")
    chunk = Chunk(
        message_id=identity.hex(),
        index=index,
        chunk_bytes=chunk_bytes,
        total=total,
        last=bool(flags & LAST),
        checksum=checksum,
        digest=digest,
        payload=payload,
    )
    if index >= chunk.count or chunk.last != (index == chunk.count - 1):
        raise WireError(f"frame {index} of {chunk.count} is out of place")
    if payload.nbytes != (total - index * chunk_bytes if chunk.last else chunk_bytes):
        raise WireError(f"frame {index} of {chunk.count} is {payload.nbytes} bytes long")
    return chunk


def to_ranges(indexes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending indexes as (first, one past the last) pairs."""
    ranges: list[tuple[int, int]] = []
    for index in indexes:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return tuple(ranges)


def in_ranges(ranges: Sequence[Sequence[int]]) -> frozenset[int]:
    """The indexes that `to_ranges` was given; of ranges that overlap or go back only what is new counts."""
    indexes: set[int] = set()
    done = 0
    for first, end in ranges:
        indexes.update(range(max(first, done), min(end, MAX_CHUNKS)))
        done = max(done, end)
    return frozenset(indexes)
