"""Single requests of a device outside a training: for `merge` and `predict`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from broker.protocol import messages as m
from device_agent.link.link import Connect, Link
from device_agent.session import events as e
from spliteasy.errors import LinkError, RemoteError, StateError

ANSWER_S = 60.0
"""One request may take this long, whatever happens to the link meanwhile."""

RETRY_S = 1.0
ASK_AGAIN_S = 10.0

R = TypeVar("R", bound=m.Reply)


class SessionClient:
    """Sends one request of a session at a time, and waits for its reply."""

    def __init__(self, link: Link, events: asyncio.Queue[e.Event]) -> None:
        self._link = link
        self._events = events

    async def ask(self, request: m.Request, expected: type[R]) -> R:
        """The reply, sending the request again as often as it takes.

        Raises RemoteError, StateError, and LinkError where no answer comes in time.
        """
        try:
            async with asyncio.timeout(ANSWER_S):
                self._send_if_up(request)
                while True:
                    reply = await self._next_reply(request)
                    if isinstance(reply, expected):
                        return reply
                    await self._react(request, reply)
        except TimeoutError:
            raise LinkError(
                f"no answer within {ANSWER_S:.0f} s", hint="is a worker running? see `spliteasy status`"
            ) from None

    async def _next_reply(self, request: m.Request) -> m.Reply | None:
        """Return the next reply to the request; None says that it has to be sent again."""
        while True:
            try:
                async with asyncio.timeout(ASK_AGAIN_S):
                    event = await self._events.get()
            except TimeoutError:
                return None
            match event:
                case e.LinkUp():
                    self._send_if_up(request)
                case e.NotSent(request=name) if name == request.request:
                    return None
                case e.Received(message=m.Reply() as reply) if reply.answers == request.request:
                    return reply

    async def _react(self, request: m.Request, reply: m.Reply | None) -> None:
        match reply:
            case m.Error(retriable=False):
                raise RemoteError(reply.message, code=reply.code, hint=reply.hint)
            case m.Superseded() | m.Reopen():
                raise StateError(
                    "the state folder and the store are not at the same step",
                    hint="run the agent once more with this --state, then try again",
                )
            case m.Busy(retry_after_s=delay_s):
                await asyncio.sleep(delay_s)
            case _:
                await asyncio.sleep(RETRY_S)
        self._send_if_up(request)

    def _send_if_up(self, request: m.Request) -> None:
        if self._link.is_up:
            self._link.send(request)


@asynccontextmanager
async def calling(connect: Connect, session: str, digest: str) -> AsyncIterator[SessionClient]:
    """Return a link of the session's device, which trains that version of its job, while it is entered.

    Raises LinkError, LinkRefused, RemoteError.
    """
    events: asyncio.Queue[e.Event] = asyncio.Queue()
    link = Link(connect, session.partition(".")[2], emit=events.put_nowait)
    running = asyncio.create_task(link.run())
    first = asyncio.create_task(events.get())
    try:
        await asyncio.wait({running, first}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        client = SessionClient(link, events)
        told = await client.ask(m.GetJob(session=session, digest=digest, without_parts=True), m.Job)
        link.shard = told.shard
        yield client
    finally:
        for task in (running, first):
            task.cancel()
        with suppress(asyncio.CancelledError, LinkError):
            await running
