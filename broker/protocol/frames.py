"""Frames: a message's body cut into pieces that a broker takes. `assembler.py` puts them together again.

A frame is a header of 64 bytes and a payload. All numbers are little-endian:

     0   4   magic "SPEF"
     4   1   version (u8): 2
     5   3   zero
     8   8   message id: raw bytes, unique to one body of one sender
    16   8   offset of the payload in the body (u64)
    24   8   total: bytes of the body (u64, within 2^53)
    32   4   chunk_bytes: the largest payload that the sender cuts at present (u32). The answer is cut no
             coarser: the sender chose that size by its link
    36   4   in the message's last frame, whose payload ends at `total`, crc32 of the whole body (u32);
             zero in the others
    40  20   zero
    60   4   checksum: crc32 of everything else in the frame, header first (u32)

A frame's checksum covers its payload and its place; the checksum of the body finds out a body that was
put together from the frames of two others. Frames may arrive in any order, more than once, and cut in
different sizes: what counts are bytes. The same id must name the same bytes: a sender that encodes a
request again takes a new id. A sender that sends the same bytes again keeps their id, and leaves out
what the other side already has.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from broker.protocol.checksum import crc32
from broker.protocol.ranges import ByteRanges, Range
from broker.transport.base import Frame
from spliteasy.errors import WireError

MAGIC = b"SPEF"
VERSION = 2
HEADER_BYTES = 64
FRAME_BYTES = 1 << 20
CHUNK_BYTES = FRAME_BYTES - HEADER_BYTES
MIN_CHUNK_BYTES = 8192
"""Neither side cuts finer than this, however slow the link is: each frame has a cost of its own."""
MAX_CHUNK_BYTES = (1 << 32) - 1

_HEADER = struct.Struct("<4sB3s8sQQII20s")
_CRC = struct.Struct("<I")
_ZERO, _RESERVED = bytes(3), bytes(20)


def to_frames(
    body: Frame | Sequence[Frame],
    *,
    message_id: str,
    chunk_bytes: int = CHUNK_BYTES,
    skip: Iterable[Range] = (),
) -> Iterator[bytes]:
    """The frames of a body, or of the concatenation of its parts: each byte is copied once.

    The byte ranges in `skip` are left out, because the other side has them.

    `message_id` is 16 hexadecimal digits (`new_nonce`). The parts must not change until the last frame.
    """
    parts = _Parts(body)
    if not parts.nbytes or not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
        raise ValueError(f"{parts.nbytes} bytes can't be cut into chunks of {chunk_bytes}")
    body_crc = done = 0
    for begin, end in ByteRanges(skip).gaps(parts.nbytes):
        for offset in range(begin, end, chunk_bytes):
            stop = min(offset + chunk_bytes, end)
            for piece in parts.slices(done, stop):
                body_crc = crc32(piece, body_crc)
            done, last = stop, stop == parts.nbytes
            header = frame_header(
                message_id, offset, parts.nbytes, chunk_bytes=chunk_bytes, body_crc=body_crc if last else 0
            )
            pieces = parts.slices(offset, stop)
            yield b"".join((header, frame_checksum(header, *pieces), *pieces))


def payload_digests(body: Sequence[Frame], block_bytes: int, *, first: int) -> list[str]:
    """The digests of the first blocks of a body: equal bytes at the same place have the same digest."""
    parts = _Parts(body)
    begins = range(0, parts.nbytes, block_bytes)[:first]
    return [payload_digest(*parts.slices(begin, begin + block_bytes)) for begin in begins]


def payload_digest(*pieces: Frame) -> str:
    """The digest by which two pieces of a body are taken to be the same: 16 hexadecimal digits."""
    hasher = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def frame_header(message_id: str, offset: int, total: int, *, chunk_bytes: int, body_crc: int = 0) -> bytes:
    """The first 60 bytes of a frame; `body_crc` belongs in the last one."""
    identity = bytes.fromhex(message_id)
    return _HEADER.pack(MAGIC, VERSION, _ZERO, identity, offset, total, chunk_bytes, body_crc, _RESERVED)


def frame_checksum(header: bytes, *pieces: Frame) -> bytes:
    """The last 4 bytes of a frame's header: they cover those before them, and the payload."""
    crc = crc32(header)
    for piece in pieces:
        crc = crc32(piece, crc)
    return _CRC.pack(crc)


class _Parts:
    """The bytes of a body that lies in several buffers."""

    def __init__(self, body: Frame | Sequence[Frame]) -> None:
        parts = [body] if isinstance(body, Frame) else body
        self._views = [memoryview(part).cast("B") for part in parts]
        self._ends = list(accumulate(view.nbytes for view in self._views))
        self.nbytes = self._ends[-1] if self._ends else 0

    def slices(self, begin: int, end: int) -> list[memoryview]:
        """Views of the bytes from `begin` to before `end`, one for each buffer that has some of them."""
        found = []
        for index in range(bisect_right(self._ends, begin), len(self._views)):
            first = self._ends[index] - self._views[index].nbytes
            if first >= end:
                break
            found.append(self._views[index][max(begin - first, 0) : end - first])
        return found


# Parsing ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A frame whose checksum and place were found right."""

    message_id: str
    offset: int
    total: int
    chunk_bytes: int
    body_crc: int
    payload: memoryview

    @property
    def end(self) -> int:
        """One past the last byte of the body that it carries."""
        return self.offset + self.payload.nbytes

    @property
    def last(self) -> bool:
        """Return whether the body ends with it."""
        return self.end == self.total


def parse_frame(frame: Frame) -> Chunk:
    """Raises `WireError` for anything that `to_frames` would not have made."""
    view = memoryview(frame).cast("B")
    if view.nbytes <= HEADER_BYTES:
        raise WireError("too short to be a frame")
    magic, version, zero, identity, offset, total, chunk_bytes, body_crc, reserved = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise WireError("not a frame of SplitEasy")
    if version != VERSION:
        raise WireError(f"a frame of version {version}, this side speaks {VERSION}")
    if zero != _ZERO or reserved != _RESERVED:
        raise WireError("a frame whose reserved bytes are not zero")
    payload = view[HEADER_BYTES:]
    if _CRC.pack(crc32(payload, crc32(view[: _HEADER.size]))) != view[_HEADER.size : HEADER_BYTES]:
        raise WireError("a frame's checksum is wrong")
    chunk = Chunk(
        message_id=identity.hex(),
        offset=offset,
        total=total,
        chunk_bytes=chunk_bytes,
        body_crc=body_crc,
        payload=payload,
    )
    if total >= 1 << 53 or chunk.end > total:
        raise WireError(f"bytes {offset} to {chunk.end} of a message of {total} are out of place")
    if payload.nbytes > chunk_bytes:
        raise WireError(f"a frame of {payload.nbytes} bytes in a message cut at {chunk_bytes}")
    if body_crc and not chunk.last:
        raise WireError("a frame in the middle has the checksum of the body")
    return chunk
