"""Opening channels of aiormq, and closing what may be gone already."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel


async def open_channel(connection: AbstractConnection, *, confirms: bool) -> Channel:
    """`confirms`: publishing on it waits for the broker's word."""
    channel = await connection.channel(publisher_confirms=confirms)
    assert isinstance(channel, Channel)
    return channel


def seen(task: asyncio.Task[Any]) -> None:
    """Mark the task's error as seen. It is raised to the caller that awaits the task, if there is one."""
    if not task.cancelled():
        task.exception()


async def quietly(closes: Iterable[Awaitable[Any]], timeout_s: float) -> None:
    """Await all closes; what they raise, or do not finish in time, is of no interest any more."""
    tasks = [asyncio.ensure_future(close) for close in closes]
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=timeout_s)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
