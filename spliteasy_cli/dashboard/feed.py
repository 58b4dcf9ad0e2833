"""A feed of what the page shows, as parts by name. Each change goes to all who listen (Server-Sent
Events)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import orjson

QUEUE = 64
"""Changes that may wait for a slow reader; one with more is let go, and its browser connects again."""

ALIVE = b": alive\n\n"
"""A comment that keeps proxies from taking a silent connection for dead."""


class Feed:
    """The newest value of each part. One event loop only."""

    def __init__(self) -> None:
        self._parts: dict[str, bytes] = {}
        self._readers: set[asyncio.Queue[bytes | None]] = set()
        self._closed = False

    @property
    def readers(self) -> int:
        return len(self._readers)

    def publish(self, part: str, value: object) -> None:
        """Put a new value; one that is the same as before goes to nobody."""
        text = orjson.dumps(value)
        if self._parts.get(part) == text:
            return
        self._parts[part] = text
        frame = _frame(part, text)
        for queue in list(self._readers):
            try:
                queue.put_nowait(frame)
            except asyncio.QueueFull:
                self._let_go(queue)

    def whole(self) -> bytes:
        """All parts, as one JSON object."""
        parts = b",".join(orjson.dumps(part) + b":" + text for part, text in self._parts.items())
        return b"{" + parts + b"}"

    async def frames(self, alive_s: float) -> AsyncGenerator[bytes, None]:
        """All parts as they are, then every change, until `close`; after a silence of `alive_s` a comment."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE)
        now = [_frame(part, text) for part, text in self._parts.items()]
        if self._closed:
            return
        self._readers.add(queue)
        try:
            for frame in now:
                yield frame
            while True:
                try:
                    async with asyncio.timeout(alive_s):
                        changed = await queue.get()
                except TimeoutError:
                    changed = ALIVE
                if changed is None:
                    return
                yield changed
        finally:
            self._readers.discard(queue)

    def close(self) -> None:
        """End all `frames`."""
        self._closed = True
        for queue in list(self._readers):
            self._let_go(queue)

    def _let_go(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._readers.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)


def _frame(part: str, text: bytes) -> bytes:
    """JSON of orjson has no line breaks, so that one `data` line holds it."""
    return b"event: " + part.encode() + b"\ndata: " + text + b"\n\n"
