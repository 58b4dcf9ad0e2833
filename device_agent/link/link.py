"""The device's link to the broker: one connection after another, requests out, replies in.

It reconnects for ever with full jitter, and tells its owner by events. What was being sent when a
connection went down is forgotten here: the session knows what it still needs an answer to, and asks.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from broker import decode
from broker.protocol import messages as m
from broker.protocol.assembler import Assembled, Assembler, AssemblerLimits
from broker.protocol.envelope import encode_parts
from broker.protocol.frames import CHUNK_BYTES, MIN_CHUNK_BYTES, payload_digests
from broker.protocol.labels import codec_label
from broker.transport.backoff import full_jitter
from broker.transport.base import Transport
from broker.transport.patience import SETTLED_S, UNREACHABLE_S, Patience
from broker.transport.send_window import SendWindow
from broker.transport.sender import WINDOW, send_message
from broker.transport.topology import REPLY_SLOTS, REPLY_TO, reply_slot, uplink_key
from device_agent import metrics
from device_agent.link.metered import Metered
from device_agent.link.rate_limit import Pace
from device_agent.link.repeats import Repeats, key_of
from device_agent.link.speed import LinkSpeed
from device_agent.session import events as e
from spliteasy.errors import LinkError, LinkRefused, Unroutable, UserError, WireError
from spliteasy.observability.meter import SILENT, Meter

log = structlog.get_logger(__name__)

Connect = Callable[[], Awaitable[Transport]]
Item = tuple[m.Request, m.Ranges, m.Request | None]
"""A request, its bytes that need not be sent, and of an ASK the request that it is about."""
CHUNK_S = 0.125
"""A chunk may take this long at the measured speed: a cut costs half of it, and what follows waits as long.
"""
FIRST_CHUNK_BYTES = 32 << 10
"""The chunk of the first requests, before a speed is measured: five seconds at 50 kbit/s."""
WINDOW_S = 0.1
"""Frames may wait for this much of the link's time, beside two round trips."""
PREFETCH, PREFETCH_METERED = 64, 2
"""Frames that the broker may send ahead. Where bytes are counted, few: those can't be refused any more."""
MAX_TOLD = 10
"""Unreadable replies are logged so often."""
MAX_PARTIAL = 8
WORKERS = "workers"
"""The one sender that replies are put together for: each has an id of its own."""


class Link:
    """Sends a device's requests and hands on replies, over whatever connection there is."""

    def __init__(
        self,
        connect: Connect,
        device: str,
        *,
        emit: Callable[[e.Event], None],
        chunk_bytes: int = CHUNK_BYTES,
        patience_s: float = UNREACHABLE_S,
        give_up_s: float | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        meter: Meter = SILENT,
        pace: Pace | None = None,
    ) -> None:
        """`patience_s`: how long the first connection may take; `give_up_s`: how long each later one (None:
        without end). `pace` limits what is sent; None: as fast as it goes.
        """
        self.shard: int | None = None
        """The shard that the session's requests go to; None is the front queue."""
        self.bytes_up = 0
        self.bytes_down = 0
        self.is_up = False
        self.speed = LinkSpeed()
        self._connect = connect
        self._device = device
        self._emit = emit
        self.chunk_bytes = chunk_bytes
        self._patience = Patience(unreachable_s=patience_s, limit_s=give_up_s, clock=clock)
        self._rng = rng
        self._clock = clock
        self._meter = meter
        self._pace = pace
        self.metered: Metered | None = None
        """A limit that is asked before each frame is sent, and informed of each that has come."""
        self._repeats = Repeats(clock)
        self._unreadable = 0
        """Replies that were not of this protocol."""
        self._waiting: deque[tuple[float, int]] = deque()
        """Frames that wait for confirms: when each became the first of them or was let go, and its bytes."""
        self._sending = 0
        """Requests that wait for confirms."""
        self._slot = (rng or random.Random()).randrange(REPLY_SLOTS)
        """The number of the device's reply queue that this connection reads. The next connection reads the
        next one: the broker may not have noticed yet that this one is gone. Another agent of the device has
        its own."""
        self._outbox: asyncio.Queue[Item] = asyncio.Queue()
        self._assembler = Assembler(AssemblerLimits(total_bytes=4 << 30), clock)

    @property
    def download_bytes(self) -> int:
        """Reserved for replies that have not arrived whole."""
        return self._assembler.bytes_held

    async def run(self) -> None:
        """Keep a connection until cancelled. Raises LinkError and UserError as `Patience` has it."""
        told = ""
        delays = full_jitter(rng=self._rng)
        while True:
            connected_s = math.inf
            try:
                if self.metered is not None:
                    await self.metered.room()
                transport = await self._connect()
                connected_s = self._clock()
                await self._live_and_close(transport)
            except (LinkError, UserError) as error:
                self._patience.check(error)
                if self._clock() - connected_s >= SETTLED_S:
                    told, delays = "", full_jitter(rng=self._rng)
                if connected_s < math.inf and error.retriable:
                    log.info("link lost", device=self._device, error=str(error))
                elif error.message != told:
                    told = error.message
                    log.warning(f"{told}; trying again", device=self._device, hint=error.hint)
            await asyncio.sleep(next(delays))

    async def _live_and_close(self, transport: Transport) -> None:
        """Use the connection until it ends. Raises LinkError."""
        # A task of its own: a task group that fails as it is cancelled tells of its failure only, and
        # this would go on for ever.
        live = asyncio.create_task(self._live(transport))
        try:
            await asyncio.wait({live})
            live.result()
        except BaseExceptionGroup as errors:
            raise _told(errors) from None
        finally:
            live.cancel()
            await asyncio.gather(live, return_exceptions=True)
            self.is_up = False
            self._connection_ended()
            self._emit(e.LinkDown())
            self._forget_outbox()
            await transport.close()
            self._patience.lost(transport.lost)

    @property
    def frame_bytes(self) -> int:
        """Payload of a frame of the next request: what the link carries in `CHUNK_S`, at most as set."""
        rate = self.speed.slower
        fitting = FIRST_CHUNK_BYTES if rate is None else max(MIN_CHUNK_BYTES, int(rate * CHUNK_S))
        limits = [self.chunk_bytes, fitting]
        if self._pace is not None:
            limits.append(self._pace.chunk_bytes)
        return min(limits)

    def _window_bytes(self) -> float:
        """Return the bytes that may wait for confirms: enough to keep the link busy, and no more, so that a
        BACKWARD does not wait behind the FORWARDs of all later micro-batches."""
        rate, rtt_s = self.speed.up, self.speed.rtt_s
        return math.inf if rate is None or rtt_s is None else rate * (2 * rtt_s + WINDOW_S)

    def send(self, request: m.Request, skip: m.Ranges = (), whole: m.Request | None = None) -> None:
        """Send when its turn comes, without the bytes in `skip`; an ASK says what `whole` consists of.

        Emits Sent or NotSent, or nothing where the link goes down first.
        """
        self._outbox.put_nowait((request, skip, whole))

    async def _live(self, transport: Transport) -> None:
        self._slot += 1
        queue = reply_slot(self._device, self._slot)
        await transport.declare(queue)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(transport, queue.name))
            tasks.create_task(self._write(transport, queue.name))
            tasks.create_task(_raise_when_lost(transport))
            self.is_up = True
            self.speed.connected()
            self._meter.add(metrics.CONNECTIONS)
            self._emit(e.LinkUp())

    async def _read(self, transport: Transport, queue: str) -> None:
        prefetch = PREFETCH if self.metered is None else PREFETCH_METERED
        subscription = await transport.subscribe(queue, prefetch=prefetch, exclusive=True)
        self._patience.connected()
        async for delivery in subscription:
            self.bytes_down += len(delivery.body)
            if self.metered is not None:
                self.metered.received(len(delivery.body))
            try:
                outcome = self._assembler.add(WORKERS, delivery.body)
                whole = isinstance(outcome, Assembled)
                self.speed.arrived(len(delivery.body), self._clock(), last=whole)
                if isinstance(outcome, Assembled):
                    reply = decode(outcome.body)
                    self._meter.add(metrics.BYTES, outcome.body.nbytes, "received", codec_label(reply))
                    self._emit(e.Received(reply))
                else:
                    self._emit(e.Arriving())
            except WireError as error:
                self._unreadable += 1
                if self._unreadable <= MAX_TOLD:  # a worker must not fill this disk with them
                    log.warning("a reply can't be read", device=self._device, error=error.message)
            await subscription.ack(delivery)
        raise LinkError("the reply queue was closed")

    async def _write(self, transport: Transport, queue: str) -> None:
        """Send one request after the other: the next goes out while the last waits for its confirms. One that
        was sent too often waits (`repeats.py`).

        All but FORWARDs go first: a BACKWARD lets the worker compute and send, while the FORWARDs of later
        micro-batches would only wait there for their turn.
        """
        window, held = SendWindow(WINDOW, self._window_bytes), dict[str, Item]()
        self._repeats.connected()
        async with asyncio.TaskGroup() as sending:

            def begin(request: m.Request, skip: m.Ranges, whole: m.Request | None) -> None:
                if isinstance(request, m.Ask):
                    request = self._with_partial_replies(request)
                    request = request if whole is None else _with_digests(request, whole, self.frame_bytes)
                sending.create_task(self._send(transport, queue, request, skip, window))

            async def begin_later(key: str, wait_s: float) -> None:
                await asyncio.sleep(wait_s)
                begin(*held.pop(key))

            while True:
                item = await self._outbox.get()
                key = key_of(item[0])
                if key in held:  # the newest of them is sent
                    replaced, held[key] = held[key][0], item
                    if replaced.request != item[0].request:
                        self._emit(e.Sent(replaced.request))
                elif (wait_s := self._repeats.wait_s(item[0])) > 0:
                    held[key] = item
                    sending.create_task(begin_later(key, wait_s))
                else:
                    begin(*item)

    async def _send(
        self, transport: Transport, queue: str, request: m.Request, skip: m.Ranges, window: SendWindow
    ) -> None:
        key = uplink_key(self._device, None if isinstance(request, m.GetJob) else self.shard)
        codec, began_s, first = codec_label(request), self._clock(), self._sending == 0
        total = 0

        def sent(frame_bytes: int) -> None:
            nonlocal total
            total += frame_bytes
            self._confirmed()
            self._count_sent(codec, frame_bytes)

        self._sending += 1
        try:
            await send_message(
                transport,
                key,
                request,
                message_id=request.request,
                headers={REPLY_TO: queue},
                chunk_bytes=self.frame_bytes,
                window=window,
                admit=self._admit,
                sent=sent,
                urgency=isinstance(request, m.Forward | m.Recall),
                skip=skip,
            )
        except* Unroutable:
            self._waiting.clear()
            self._emit(e.NotSent(request.request))
        else:
            if first:  # others share the link with those before them
                self.speed.sent(total, self._clock() - began_s)
            self._emit(e.Sent(request.request))
        finally:
            self._sending -= 1

    async def _admit(self, frame_bytes: int) -> None:
        if self.metered is not None:
            self.metered.sending(frame_bytes)
        if self._pace is not None:
            await self._pace.admit(frame_bytes)
        self._waiting.append((self._clock(), frame_bytes))

    def _confirmed(self) -> None:
        """One more frame has arrived: only now it is the next one's turn."""
        if self._waiting:
            self._waiting.popleft()
        if self._waiting:
            self._waiting[0] = (self._clock(), self._waiting[0][1])

    def _connection_ended(self) -> None:
        """Learn from what never got through that the link is at least so slow: the next chunks are finer."""
        if self._waiting:
            since_s, frame_bytes = self._waiting[0]
            self.speed.gave_up(frame_bytes, self._clock() - since_s)
        self._waiting.clear()

    def _count_sent(self, codec: str, frame_bytes: int) -> None:
        self.bytes_up += frame_bytes
        self._meter.add(metrics.BYTES, frame_bytes, "sent", codec)

    def _with_partial_replies(self, ask: m.Ask) -> m.Ask:
        """Say which bytes of replies have come already, over connections that were lost since."""
        ids = self._assembler.unfinished(WORKERS)[-MAX_PARTIAL:]
        ranges = tuple(self._assembler.held(WORKERS, message_id)[: m.MAX_RANGES] for message_id in ids)
        return ask.model_copy(update={"partial": tuple(ids), "partial_ranges": ranges})

    def _forget_outbox(self) -> None:
        with suppress(asyncio.QueueEmpty):
            while True:
                self._outbox.get_nowait()


def _told(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return from a group of LinkErrors the one to act on, a refusal where there is one; else the group."""
    links, others = errors.split(LinkError)
    if others is not None:
        return errors
    assert links is not None
    refusals = links.subgroup(LinkRefused)
    found: BaseException = refusals or links
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


async def _raise_when_lost(transport: Transport) -> None:
    await transport.wait_lost()
    raise LinkError("the connection to the broker was lost")


def _with_digests(ask: m.Ask, whole: m.Request, block_bytes: int) -> m.Ask:
    """Say what the request consists of, so that the worker finds what came of it under another id."""
    parts = encode_parts(whole)
    digests = payload_digests(parts, block_bytes, first=m.MAX_DIGESTS)
    total = sum(memoryview(part).nbytes for part in parts)
    return ask.model_copy(update={"total": total, "block_bytes": block_bytes, "digests": tuple(digests)})
