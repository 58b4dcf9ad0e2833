"""Frames: a message's body cut into pieces that a broker takes, and put together again.

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
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from broker.checksum import crc32
from broker.transport import Frame
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


# Cutting ------------------------------------------------------------------------------------------


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
        header = _header(message_id, index, chunk_bytes, total, last=last, digest=digest)
        checksum = _checksum(header, *pieces)
        seal.update(checksum)
        if index not in skip:
            yield b"".join((header, checksum, *pieces))


def payload_digests(body: Sequence[Frame], chunk_bytes: int, *, first: int) -> list[str]:
    """Digests of the payloads of the first frames of a body, whatever its message id: the same bytes in the
    same place have the same."""
    parts = [memoryview(part) for part in body]
    return [_digest(*pieces) for pieces in islice(_cut(parts, chunk_bytes), first)]


def _digest(*pieces: Frame) -> str:
    hasher = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def _header(
    message_id: str,
    index: int,
    chunk_bytes: int,
    total: int,
    *,
    last: bool = False,
    digest: bytes = _NO_DIGEST,
) -> bytes:
    identity = bytes.fromhex(message_id)
    return _HEADER.pack(
        MAGIC, VERSION, LAST * last, 0, identity, index, chunk_bytes, total, digest, _RESERVED
    )


def _checksum(header: bytes, *pieces: Frame) -> bytes:
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


# Putting together ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblerLimits:
    """What unfinished messages may take. Only those count: a finished one belongs to the caller."""

    body_bytes: int = 512 << 20
    sender_messages: int = 16
    sender_bytes: int = 512 << 20
    messages: int = 1024
    total_bytes: int = 2 << 30
    expire_s: float = 120.0
    """An unfinished message that gets no frame for this long is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """All frames are there. `body` starts at a multiple of 64 in memory and is nobody else's."""

    message_id: str
    body: memoryview
    chunk_bytes: int
    """As its sender cut it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """The frame was taken. Where `last`, it was the message's last one, and earlier ones are missing."""

    message_id: str
    last: bool
    held: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OverBudget:
    """The frame was dropped, because its message has no room now: answer BUSY (once, at `last`)."""

    message_id: str
    last: bool


Outcome = Assembled | Partial | OverBudget


@dataclass(slots=True)
class _Upload:
    chunk_bytes: int
    total: int
    buffer: memoryview
    touched_s: float
    checksums: dict[int, bytes] = field(default_factory=dict)
    digest: bytes = b""


@dataclass(slots=True)
class Assembler:
    """Puts frames together by (sender, message id), within limits; `clock` is in seconds."""

    limits: AssemblerLimits = field(default_factory=AssemblerLimits)
    clock: Callable[[], float] = time.monotonic
    _uploads: dict[tuple[str, str], _Upload] = field(default_factory=dict, init=False)
    """Ordered by last touch, the stalest first."""

    def add(self, sender: str, frame: Frame) -> Outcome:
        """Take one frame. Raises `WireError` for a malformed one, and for one that contradicts those held
        under its id: then they are dropped too, and the sender may begin anew.
        """
        self.expire()
        chunk = parse_frame(frame)
        if chunk.count == 1:
            self._check_digest(chunk.digest, ())
            return Assembled(
                message_id=chunk.message_id, body=_copied(chunk.payload), chunk_bytes=chunk.chunk_bytes
            )
        key = (sender, chunk.message_id)
        upload = self._uploads.pop(key, None) or self._begin(sender, chunk)
        if upload is None:
            return OverBudget(message_id=chunk.message_id, last=chunk.last)
        if (upload.chunk_bytes, upload.total) != (chunk.chunk_bytes, chunk.total):
            raise WireError(f"two messages under the id {chunk.message_id}")
        if upload.checksums.setdefault(chunk.index, chunk.checksum) != chunk.checksum:
            raise WireError(f"two frames {chunk.index} under the id {chunk.message_id}")
        offset = chunk.index * chunk.chunk_bytes
        upload.buffer[offset : offset + chunk.payload.nbytes] = chunk.payload
        if chunk.last:
            upload.digest = chunk.digest
        if len(upload.checksums) == chunk.count:
            self._check_digest(upload.digest, [upload.checksums[index] for index in range(chunk.count - 1)])
            return Assembled(message_id=chunk.message_id, body=upload.buffer, chunk_bytes=chunk.chunk_bytes)
        upload.touched_s = self.clock()
        self._uploads[key] = upload
        return Partial(
            message_id=chunk.message_id, last=chunk.last, held=len(upload.checksums), count=chunk.count
        )

    @property
    def messages_held(self) -> int:
        """Unfinished messages."""
        return len(self._uploads)

    def held(self, sender: str, message_id: str) -> list[int]:
        """Indexes of the frames that are there of an unfinished message."""
        upload = self._uploads.get((sender, message_id))
        return sorted(upload.checksums) if upload else []

    def unfinished(self, sender: str) -> list[str]:
        """Ids of the sender's unfinished messages, the stalest first."""
        return [message_id for owner, message_id in self._uploads if owner == sender]

    def forget_last(self, sender: str, message_id: str) -> None:
        """Forget the last frame of an unfinished message: it is to come again, behind those before it."""
        upload = self._uploads.get((sender, message_id))
        if upload is not None:
            upload.checksums.pop(-(-upload.total // upload.chunk_bytes) - 1, None)

    def cut_as(self, sender: str, message_id: str, chunk_bytes: int) -> bool:
        """Whether an unfinished message has chunks of that size, or is not there."""
        upload = self._uploads.get((sender, message_id))
        return upload is None or upload.chunk_bytes == chunk_bytes

    def recut(self, sender: str, message_id: str, chunk_bytes: int) -> None:
        """Keep what is there of an unfinished message as chunks of another size: its sender cuts it so now.

        A new chunk is there where all that it consists of is; the last one never is. Where none is, the
        message is forgotten.
        """
        upload = self._uploads.get((sender, message_id))
        if (
            upload is None
            or upload.chunk_bytes == chunk_bytes
            or -(-upload.total // chunk_bytes) > MAX_CHUNKS
        ):
            return
        old, kept = upload.chunk_bytes, {}
        for index in range(-(-upload.total // chunk_bytes) - 1):
            begin, end = index * chunk_bytes, (index + 1) * chunk_bytes
            if all(part in upload.checksums for part in range(begin // old, -(-end // old))):
                header = _header(message_id, index, chunk_bytes, upload.total)
                kept[index] = _checksum(header, upload.buffer[begin:end])
        if kept:
            upload.chunk_bytes, upload.checksums, upload.digest = chunk_bytes, kept, b""
        else:
            del self._uploads[sender, message_id]

    def make_finer(self, sender: str, message_id: str, chunk_bytes: int) -> int:
        """`recut` an unfinished message whose chunks are larger than that; its chunk size then."""
        upload = self._uploads[sender, message_id]
        self.recut(sender, message_id, min(chunk_bytes, upload.chunk_bytes))
        return upload.chunk_bytes

    def adopt(
        self, sender: str, message_id: str, *, chunk_bytes: int, total: int, digests: Sequence[str]
    ) -> None:
        """Take over for a new message what an unfinished one of the sender has in common with it.

        `digests` are those of the new one's payloads, see `payload_digests`. The last frame is never taken
        over. The old message is forgotten, if anything of it is taken.
        """
        last = -(-total // chunk_bytes) - 1
        for owner, old in [key for key in reversed(self._uploads) if key[0] == sender]:
            if self._uploads[owner, old].total != total:
                continue
            self.recut(owner, old, chunk_bytes)
            upload = self._uploads.get((owner, old))
            if upload is None or upload.chunk_bytes != chunk_bytes:
                continue
            kept = {}
            for index in sorted(upload.checksums):
                payload = upload.buffer[index * chunk_bytes : (index + 1) * chunk_bytes]
                if index < min(last, len(digests)) and _digest(payload) == digests[index]:
                    kept[index] = _checksum(_header(message_id, index, chunk_bytes, total), payload)
            if kept:
                del self._uploads[owner, old]
                upload = _Upload(chunk_bytes, total, upload.buffer, self.clock(), kept)
                self._uploads[sender, message_id] = upload
                return

    def bytes_of(self, sender: str) -> int:
        """Reserved for the sender's unfinished messages."""
        return sum(upload.total for (owner, _), upload in self._uploads.items() if owner == sender)

    def drop(self, sender: str) -> None:
        """Forget all that the sender has not finished."""
        for key in [key for key in self._uploads if key[0] == sender]:
            del self._uploads[key]

    def expire(self) -> list[tuple[str, str]]:
        """Drop what got no frame for `expire_s`: its senders and message ids."""
        horizon = self.clock() - self.limits.expire_s
        stale = []
        for key, upload in self._uploads.items():
            if upload.touched_s > horizon:
                break
            stale.append(key)
        for key in stale:
            del self._uploads[key]
        return stale

    @property
    def bytes_held(self) -> int:
        """Reserved for unfinished messages."""
        return sum(upload.total for upload in self._uploads.values())

    def _begin(self, sender: str, chunk: Chunk) -> _Upload | None:
        """Room for a new message; None where a budget is full. Raises `WireError` where it never fits."""
        limits = self.limits
        if chunk.total > limits.body_bytes:
            raise WireError(f"a message of {chunk.total} bytes, the limit is {limits.body_bytes}")
        own = [upload.total for (owner, _), upload in self._uploads.items() if owner == sender]
        if (
            len(own) >= limits.sender_messages
            or len(self._uploads) >= limits.messages
            or sum(own) + chunk.total > limits.sender_bytes
            or self.bytes_held + chunk.total > limits.total_bytes
        ):
            return None
        return _Upload(chunk.chunk_bytes, chunk.total, _buffer(chunk.total), self.clock())

    @staticmethod
    def _check_digest(digest: bytes, checksums: Sequence[bytes]) -> None:
        if hashlib.blake2b(b"".join(checksums), digest_size=16).digest() != digest:
            raise WireError("a message's frames do not belong together")


def _buffer(size: int) -> memoryview:
    """Memory at a multiple of 64, as torch's own: kernels give the same bits for equal alignment only."""
    return torch.empty(size, dtype=torch.uint8).numpy().data


def _copied(payload: memoryview) -> memoryview:
    buffer = _buffer(payload.nbytes)
    buffer[:] = payload
    return buffer
