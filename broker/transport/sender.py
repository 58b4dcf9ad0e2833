"""Sending a whole message: encoded, cut into frames, with a bounded number of confirms in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from broker.protocol.envelope import encode_parts
from broker.protocol.frames import CHUNK_BYTES, to_frames
from broker.protocol.messages import Message
from broker.protocol.ranges import Range
from broker.transport.base import Transport
from broker.transport.send_window import SendWindow

WINDOW = 8
"""Frames that may wait for the broker's confirm: of one message, or of all that share a `window`."""


async def send_message(
    transport: Transport,
    routing_key: str,
    message: Message,
    *,
    message_id: str,
    to_queue: bool = False,
    headers: Mapping[str, str] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    window: SendWindow | None = None,
    urgency: int = 0,
    admit: Callable[[int], Awaitable[None]] | None = None,
    sent: Callable[[int], None] | None = None,
    skip: Iterable[Range] = (),
) -> None:
    """Publish all bytes but those in `skip`, in frames; return once the broker has confirmed every one.

    `admit` gets a frame's size in bytes before the frame is sent, and may put it off; `sent` gets the size
    once the frame is confirmed. Messages that share `window` are sent in the order of their calls, but those
    of a smaller `urgency` pass between the frames of others.

    Raises a group of LinkErrors where one is not confirmed: some may have arrived. Cancelling leaves some
    unsent.
    """
    parts = encode_parts(message)
    frames = to_frames(parts, message_id=message_id, chunk_bytes=chunk_bytes, skip=skip)
    window = window or SendWindow(WINDOW)
    ticket = window.ticket()

    async def publish(frame: bytes) -> None:
        try:
            await transport.publish(routing_key, frame, to_queue=to_queue, headers=headers)
        finally:
            window.release(len(frame))
        if sent is not None:
            sent(len(frame))

    async with asyncio.TaskGroup() as tasks:
        for frame in frames:
            await window.acquire(len(frame), urgency=urgency, ticket=ticket)
            if admit is not None:
                await admit(len(frame))
            tasks.create_task(publish(frame))
