"""Sending a whole message: encoded, cut into frames, with a bounded number of confirms in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping

from broker.chunks import CHUNK_BYTES, to_frames
from broker.envelope import encode_parts
from broker.messages import Message
from broker.transport import Transport

WINDOW = 8
"""Frames of one message that may wait for the broker's confirm."""


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
    window: int = WINDOW,
    sent: Callable[[int], None] | None = None,
    skip: Container[int] = (),
) -> None:
    """Publish all frames but those in `skip`; returns once every one is confirmed. `sent` gets each
    frame's bytes then.

    Raises a group of LinkErrors where one is not confirmed: some may have arrived. Cancelling leaves some
    unsent.
    """
    frames = to_frames(encode_parts(message), message_id=message_id, chunk_bytes=chunk_bytes, skip=skip)

    room = asyncio.Semaphore(window)

    async def publish(frame: bytes) -> None:
        await transport.publish(routing_key, frame, to_queue=to_queue, persistent=persistent, headers=headers)
        room.release()
        if sent is not None:
            sent(len(frame))

    async with asyncio.TaskGroup() as tasks:
        for frame in frames:
            await room.acquire()
            tasks.create_task(publish(frame))
