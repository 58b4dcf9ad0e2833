"""Puts messages together from their frames, in any order, within what unfinished ones may take."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from broker.protocol.frames import (
    MAX_CHUNKS,
    Chunk,
    frame_checksum,
    frame_header,
    parse_frame,
    payload_digest,
)
from broker.transport.base import Frame
from spliteasy.errors import WireError


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
                header = frame_header(message_id, index, chunk_bytes, upload.total)
                kept[index] = frame_checksum(header, upload.buffer[begin:end])
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
                if index < min(last, len(digests)) and payload_digest(payload) == digests[index]:
                    kept[index] = frame_checksum(frame_header(message_id, index, chunk_bytes, total), payload)
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
