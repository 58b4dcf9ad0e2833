"""A hostile device: valid credentials, and AMQP and messages of its own making."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiormq
import torch
from aiormq.abc import AbstractChannel

from broker import connect, decode, encode
from broker.protocol import messages as m
from broker.protocol.assembler import Assembled, Assembler
from broker.protocol.frames import to_frames
from broker.transport.base import Subscription, Transport
from broker.transport.topology import DEAD, DEFAULT_SHARDS, REPLY_TO, reply_slot, shard_of, uplink_key
from tests.attack.arena import Arena
from tests.simulation import toy

ANSWER_S = 20.0
ATTEMPT = m.AttemptRef(number=1, nonce="a" * 16)


class Undefended(Exception):
    """An attack that nothing stopped."""


class DeadLetters:
    """The reasons of dead letters, by the account that sent them."""

    def __init__(self) -> None:
        self._reasons: defaultdict[str, asyncio.Queue[str]] = defaultdict(asyncio.Queue)

    async def of(self, account: str) -> str:
        """The next reason. Raises Undefended where none comes in time."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._reasons[account].get()
        except TimeoutError:
            raise Undefended("the worker buried nothing") from None

    def count(self, account: str) -> int:
        """Return how many came and were not asked for yet."""
        return self._reasons[account].qsize()

    async def collect(self, subscription: Subscription) -> None:
        """Collect dead letters until cancelled."""
        async for delivery in subscription:
            self._reasons[delivery.headers["principal"]].put_nowait(delivery.headers["reason"])
            await subscription.ack(delivery)


@asynccontextmanager
async def dead_letters(arena: Arena) -> AsyncIterator[DeadLetters]:
    """Read the dead queue as an operator does."""
    transport = await connect(arena.node.url(arena.vhost))
    letters = DeadLetters()
    collecting = asyncio.create_task(letters.collect(await transport.subscribe(DEAD, prefetch=100)))
    try:
        yield letters
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
        await transport.close()


@dataclass(kw_only=True)
class Hostile:
    """An enrolled device, connected, that does what it likes."""

    arena: Arena
    name: str
    transport: Transport
    subscription: Subscription
    queue: str
    dead: DeadLetters
    assembler: Assembler = field(default_factory=Assembler)

    @property
    def session(self) -> str:
        return f"toy.{self.name}"

    @property
    def key(self) -> str:
        """The routing key of the attacker's own session."""
        return uplink_key(self.name, shard_of(self.session, DEFAULT_SHARDS))

    async def frame(self, frame: bytes, *, key: str | None = None) -> None:
        """Publish a frame as it is."""
        await self.transport.publish(key or self.key, frame, headers={REPLY_TO: self.queue})

    async def body(self, body: bytes, *, key: str | None = None) -> None:
        """Publish a message's bytes, well cut into frames."""
        for frame in to_frames(body, message_id=m.new_nonce()):
            await self.frame(frame, key=key)

    async def send(self, request: m.Request, *, key: str | None = None) -> None:
        await self.body(encode(request), key=key)

    async def reply(self) -> m.AnyMessage:
        """The next reply. Raises Undefended where none comes in time."""
        try:
            async with asyncio.timeout(ANSWER_S):
                async for delivery in self.subscription:
                    await self.subscription.ack(delivery)
                    outcome = self.assembler.add("workers", delivery.body)
                    if isinstance(outcome, Assembled):
                        return decode(outcome.body)
        except TimeoutError:
            raise Undefended("no answer") from None
        raise Undefended("the reply queue ended")

    async def open(self) -> None:
        """Open its session of the toy job."""
        digest = toy.job(self.arena.variant).digest
        await self.send(m.Open(session=self.session, attempt=ATTEMPT, digest=digest, held=(0,)))
        reply = await self.reply()
        if not isinstance(reply, m.Opened):
            raise Undefended(f"OPEN was answered {reply.kind}")

    def forward(self, **changes: Any) -> m.Forward:
        """A FORWARD that fits, but for the changes."""
        fields: dict[str, Any] = {
            "session": self.session,
            "attempt": ATTEMPT,
            "step": 1,
            "samples": 4,
            "oldest_checkpoint": 0,
            "values": (torch.ones(4, 5),),
        }
        return m.Forward(**{**fields, **changes})


@asynccontextmanager
async def hostile(arena: Arena, dead: DeadLetters) -> AsyncIterator[Hostile]:
    """A freshly enrolled device."""
    name = arena.new_device()
    transport = await connect(arena.url(name))
    queue = reply_slot(name, 0)
    await transport.declare(queue)
    subscription = await transport.subscribe(queue.name, prefetch=10)
    try:
        yield Hostile(
            arena=arena,
            name=name,
            transport=transport,
            subscription=subscription,
            queue=queue.name,
            dead=dead,
        )
    finally:
        await transport.close()


async def refused(url: str, act: Callable[[AbstractChannel], Awaitable[object]]) -> str:
    """Do it on a channel of one's own; what the broker says. Raises Undefended where it lets it pass."""
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel(publisher_confirms=True)
        async with asyncio.timeout(ANSWER_S):
            await act(channel)
    except (aiormq.exceptions.ChannelAccessRefused, aiormq.exceptions.ChannelPreconditionFailed) as error:
        return f"broker: {' '.join(str(error).split())[:70]}"
    finally:
        await connection.close()
    raise Undefended("the broker let it pass")
