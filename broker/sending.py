"""Sending a whole message: encoded, cut into frames, with a bounded number of confirms in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Mapping

from broker.chunks import CHUNK_BYTES, MAX_CHUNKS, to_frames
from broker.envelope import encode_parts
from broker.messages import Message
from broker.transport import Transport

WINDOW = 8
"""Frames that may wait for the broker's confirm: of one message, or of all that share a `room`."""


async def send_message(
    transport: Transport,
    routing_key: str,
    message: Message,
    *,
    message_id: str,
    to_queue: bool = False,
    persistent: bool = True,
    headers: Mapping[str, str] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    room: asyncio.Semaphore | None = None,
    admit: Callable[[int], Awaitable[None]] | None = None,
    sent: Callable[[int], None] | None = None,
    handed_over: Callable[[], None] | None = None,
    skip: Container[int] = (),
) -> None:
    """Publish all frames but those in `skip`; returns once every one is confirmed. `admit` gets a frame's
    bytes before it leaves, and may put it off; `sent` gets them once it is confirmed. `handed_over` is
    called when another message may follow without overtaking.

    Raises a group of LinkErrors where one is not confirmed: some may have arrived. Cancelling leaves some
    unsent.
    """
    parts = encode_parts(message)
    least = -(-sum(memoryview(part).nbytes for part in parts) // MAX_CHUNKS)
    frames = to_frames(parts, message_id=message_id, chunk_bytes=max(chunk_bytes, least), skip=skip)
    room = room or asyncio.Semaphore(WINDOW)

    async def publish(frame: bytes) -> None:
        try:
            await transport.publish(
                routing_key, frame, to_queue=to_queue, persistent=persistent, headers=headers
            )
        finally:
            room.release()
        if sent is not None:
            sent(len(frame))

    async with asyncio.TaskGroup() as tasks:
        for frame in frames:
            await room.acquire()
            if admit is not None:
                await admit(len(frame))
            tasks.create_task(publish(frame))
        if handed_over is not None:
            handed_over()
