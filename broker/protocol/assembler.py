"""Puts messages together from their frames, in any order, within what unfinished ones may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from broker.protocol.checksum import crc32
from broker.protocol.frames import Chunk, parse_frame, payload_digest
from broker.protocol.ranges import ByteRanges, Range
from broker.transport.base import Frame
from spliteasy.errors import WireError

MAX_PIECES = 1024
"""At most so many separate ranges of an unfinished message are kept: a frame that would make more is dropped,
and has to come again. An honest sender leaves few gaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblerLimits:
    """The limits on unfinished messages. Only those count: a finished one belongs to the caller."""

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
    """The largest payload that its sender cut last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """The frame was taken. Where `last`, it was the message's last one, and earlier ones are missing."""

    message_id: str
    last: bool
    held_bytes: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OverBudget:
    """The frame was dropped, because its message has no room now: answer BUSY (once, at `last`)."""

    message_id: str
    last: bool


Outcome = Assembled | Partial | OverBudget


@dataclass(slots=True)
class _Upload:
    total: int
    buffer: memoryview
    touched_s: float
    received: ByteRanges = field(default_factory=ByteRanges)
    last_offset: int | None = None
    """The offset of the message's last frame; None where it has not come."""
    body_crc: int = 0

    def take(self, chunk: Chunk) -> None:
        """Add a frame's bytes. Raises `WireError` where they contradict those that are there."""
        for begin, end in self.received.within(chunk.offset, chunk.end):
            if self.buffer[begin:end] != chunk.payload[begin - chunk.offset : end - chunk.offset]:
                raise WireError(f"two messages under the id {chunk.message_id}")
        self.received.add(chunk.offset, chunk.end)
        if len(self.received) > MAX_PIECES:
            self.received.remove(chunk.offset, chunk.end)
            return
        self.buffer[chunk.offset : chunk.end] = chunk.payload
        if chunk.last:
            self.last_offset, self.body_crc = chunk.offset, chunk.body_crc


@dataclass(slots=True)
class Assembler:
    """Puts frames together by (sender, message id), within limits; `clock` is in seconds."""

    limits: AssemblerLimits = field(default_factory=AssemblerLimits)
    clock: Callable[[], float] = time.monotonic
    _uploads: dict[tuple[str, str], _Upload] = field(default_factory=dict, init=False)
    """Ordered by last touch, the stalest first."""

    def add(self, sender: str, frame: Frame) -> Outcome:
        """Take one frame. Raises `WireError` for a malformed one, and for one that contradicts those held
        under its id: then they are dropped too, and the sender may begin again.
        """
        self.expire()
        chunk = parse_frame(frame)
        if chunk.offset == 0 and chunk.last:
            return _assembled(chunk, _copied(chunk.payload), chunk.body_crc)
        key = (sender, chunk.message_id)
        upload = self._uploads.pop(key, None) or self._begin(sender, chunk)
        if upload is None:
            return OverBudget(message_id=chunk.message_id, last=chunk.last)
        if upload.total != chunk.total:
            raise WireError(f"two messages under the id {chunk.message_id}")
        upload.take(chunk)
        if upload.received.covers(0, upload.total):
            return _assembled(chunk, upload.buffer, upload.body_crc)
        upload.touched_s = self.clock()
        self._uploads[key] = upload
        return Partial(
            message_id=chunk.message_id,
            last=chunk.last,
            held_bytes=upload.received.nbytes,
            total=upload.total,
        )

    @property
    def messages_held(self) -> int:
        """Unfinished messages."""
        return len(self._uploads)

    def held(self, sender: str, message_id: str) -> tuple[Range, ...]:
        """The byte ranges that are there of an unfinished message."""
        upload = self._uploads.get((sender, message_id))
        return tuple(upload.received) if upload else ()

    def unfinished(self, sender: str) -> list[str]:
        """Ids of the sender's unfinished messages, the stalest first."""
        return [message_id for owner, message_id in self._uploads if owner == sender]

    def forget_last(self, sender: str, message_id: str) -> None:
        """Forget the last frame of an unfinished message: it is to come again, behind those before it."""
        upload = self._uploads.get((sender, message_id))
        if upload is not None and upload.last_offset is not None:
            upload.received.remove(upload.last_offset, upload.total)

    def adopt(
        self, sender: str, message_id: str, *, block_bytes: int, total: int, digests: Sequence[str]
    ) -> None:
        """Take over for a new message what an unfinished one of the sender has in common with it.

        `digests` are those of the new one's blocks, see `payload_digests`. The last block is never taken
        over. The old message is forgotten, if anything of it is taken.
        """
        last = -(-total // block_bytes) - 1
        for key in [key for key in reversed(self._uploads) if key[0] == sender]:
            old = self._uploads[key]
            kept = ByteRanges()
            for index, digest in enumerate(digests[:last] if old.total == total else ()):
                begin, end = index * block_bytes, (index + 1) * block_bytes
                if old.received.covers(begin, end) and payload_digest(old.buffer[begin:end]) == digest:
                    kept.add(begin, end)
            if kept:
                del self._uploads[key]
                self._uploads[sender, message_id] = _Upload(total, old.buffer, self.clock(), kept)
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
        return _Upload(chunk.total, _buffer(chunk.total), self.clock())


def _assembled(chunk: Chunk, body: memoryview, body_crc: int) -> Assembled:
    """Raises `WireError` where the body is not the one that its sender cut."""
    if crc32(body) != body_crc:
        raise WireError("a message's frames do not belong together")
    return Assembled(message_id=chunk.message_id, body=body, chunk_bytes=chunk.chunk_bytes)


def _buffer(size: int) -> memoryview:
    """Memory at a multiple of 64, as torch's own: kernels give the same bits for equal alignment only."""
    return torch.empty(size, dtype=torch.uint8).numpy().data


def _copied(payload: memoryview) -> memoryview:
    buffer = _buffer(payload.nbytes)
    buffer[:] = payload
    return buffer
