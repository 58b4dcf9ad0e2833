"""A broker within one process, with RabbitMQ's semantics: for embedded runs, tests and simulation.

It routes, confirms, prefetches, acknowledges, redelivers, hands over single-active queues, expires and
dead-letters as the real one does. It is deterministic: no threads, no wall clock (only the loop's time),
no order that depends on hashes. `FaultPolicy` is where a simulation injects faults.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from broker.transport import topology
from broker.transport.base import Delivery, Depth, Frame, Queue
from broker.transport.faults import Fault, Faultless, FaultPolicy
from broker.transport.inbox import Inbox
from spliteasy.errors import LinkError, LinkRefused, Unroutable

MAX_FRAME_BYTES = 16 << 20
"""The largest frame that RabbitMQ 4 takes by default."""

DELIVERY_LIMIT = 20
"""A quorum queue gives up on a message that came back more often than this."""

LEAST_SWEPT = 64
"""Queues that have expired are not looked for while there are fewer queues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A message in a queue. `returns` counts how often it came back unacknowledged."""

    body: bytes
    routing_key: str
    principal: str
    headers: Mapping[str, str]
    returns: int = 0


@dataclass(slots=True)
class _Held:
    """A declared queue. `consumers` are in order of subscription."""

    spec: Queue
    idle_since_s: float
    ready: deque[Stored] = field(default_factory=deque)
    consumers: list[MemorySubscription] = field(default_factory=list)
    turn: int = 0
    exclusive: bool = False
    """Its consumer has to be the only one."""


class MemoryBroker:
    """The broker that all transports of the process share. Use it from one event loop only."""

    def __init__(
        self,
        *,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        delivery_limit: int = DELIVERY_LIMIT,
        policy: FaultPolicy | None = None,
    ) -> None:
        self.max_frame_bytes = max_frame_bytes
        self.delivery_limit = delivery_limit
        self.policy: FaultPolicy = policy or Faultless()
        self._queues: dict[str, _Held] = {}
        self._bound: dict[str, None] = {}
        """The queues that keys are matched with, in order: those with bindings, which are few."""
        self._swept_at = LEAST_SWEPT
        """Queues that have expired are looked for once there are so many."""

    def connect(self, principal: str) -> MemoryTransport:
        """A new connection, authenticated as `principal`."""
        return MemoryTransport(self, principal)

    def drop(self, transport: MemoryTransport) -> None:
        """Cut the transport's connection, as a fault does."""
        transport._lose(LinkError("the connection to the broker was cut"))

    # Transports and subscriptions call these --------------------------------------------------------

    def declare(self, queue: Queue) -> None:
        held = self._find(queue.name)
        if held is None:
            self._sweep()
            self._queues[queue.name] = _Held(queue, self._now())
            if queue.bindings:
                self._bound[queue.name] = None
        elif held.spec != queue:
            raise LinkRefused(
                f"queue {queue.name} exists with other arguments", hint="delete it, or use its arguments"
            )
        else:
            held.idle_since_s = self._now()

    def delete(self, name: str) -> None:
        held = self._find(name)
        if held is not None:
            self._remove(held)

    def depth(self, name: str) -> Depth | None:
        held = self._find(name)
        if held is None:
            return None
        active = held.consumers[:1] if held.spec.single_active else held.consumers
        return Depth(messages=len(held.ready), consumers=len(active))

    def route(self, target: str, stored: Stored, *, to_queue: bool) -> bool:
        """Put the message into each queue that it matches; False where there is none."""
        if to_queue:
            found = [held] if (held := self._find(target)) else []
        else:
            found = [
                held
                for name in list(self._bound)
                if (held := self._find(name)) and any(topology.matches(b, target) for b in held.spec.bindings)
            ]
        for held in found:
            held.ready.append(stored)
            self._trim(held)
            self.pump(held)
        return bool(found)

    def is_as_declared(self, queue: Queue) -> bool:
        held = self._find(queue.name)
        if held is not None and held.spec != queue:
            self._remove(held)
        return held is not None and held.spec == queue

    def attach(self, subscription: MemorySubscription, *, exclusive: bool) -> _Held:
        held = self._find(subscription.queue)
        if held is None:
            raise LinkRefused(f"there is no queue {subscription.queue}", hint="declare it first")
        if held.exclusive or (exclusive and held.consumers):
            raise LinkError(f"somebody else reads {subscription.queue} alone")
        held.exclusive = exclusive
        held.consumers.append(subscription)
        return held

    def detach(self, held: _Held, subscription: MemorySubscription) -> None:
        """The consumer takes no more. The next one takes over at `give_back`, which must follow."""
        if subscription in held.consumers:
            held.consumers.remove(subscription)
            held.exclusive = False
            held.idle_since_s = self._now()

    def give_back(self, held: _Held, messages: list[Stored]) -> None:
        """Messages return to the head of their queue in their old order, or become dead letters."""
        for stored in reversed(messages):
            returned = replace(stored, returns=stored.returns + 1)
            if held.spec.quorum and returned.returns > self.delivery_limit:
                self._bury(held, returned)
            else:
                held.ready.appendleft(returned)
        self.pump(held)

    def pump(self, held: _Held) -> None:
        """Hand out what is ready to consumers that have room: the first only, or each in turn."""
        while held.ready:
            consumer = self._next_consumer(held)
            if consumer is None:
                return
            consumer.hand_out(held.ready.popleft())

    # Helpers ---------------------------------------------------------------------------------------

    def _next_consumer(self, held: _Held) -> MemorySubscription | None:
        if held.spec.single_active:
            return next((consumer for consumer in held.consumers[:1] if consumer.has_room), None)
        for _ in range(len(held.consumers)):
            held.turn = (held.turn + 1) % len(held.consumers)
            if held.consumers[held.turn].has_room:
                return held.consumers[held.turn]
        return None

    def _find(self, name: str) -> _Held | None:
        """The queue, unless it is not there or has expired by now."""
        held = self._queues.get(name)
        if held is None or held.consumers or held.spec.expires_s is None:
            return held
        if self._now() - held.idle_since_s < held.spec.expires_s:
            return held
        self._remove(held)
        return None

    def _sweep(self) -> None:
        """Remove what has expired, each time that there are twice as many queues as after the last time."""
        if len(self._queues) >= self._swept_at:
            for name in list(self._queues):
                self._find(name)
            self._swept_at = max(LEAST_SWEPT, 2 * len(self._queues))

    def _remove(self, held: _Held) -> None:
        del self._queues[held.spec.name]
        self._bound.pop(held.spec.name, None)
        held.ready.clear()
        _end_all(held.consumers, LinkError(f"the broker cancelled the consumer of {held.spec.name}"))

    def _trim(self, held: _Held) -> None:
        limit = held.spec.max_bytes
        if limit is None:
            return
        size = sum(len(stored.body) for stored in held.ready)
        while held.ready and size > limit:
            size -= len(held.ready.popleft().body)

    def _bury(self, held: _Held, stored: Stored) -> None:
        if held.spec.dead_letters:
            headers = {**stored.headers, "reason": "delivery_limit", "queue": held.spec.name}
            self.route(topology.DEAD, replace(stored, headers=headers, returns=0), to_queue=True)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class MemoryTransport:
    """One connection to a `MemoryBroker`; see `broker.transport.Transport`."""

    def __init__(self, broker: MemoryBroker, principal: str) -> None:
        self._broker = broker
        self._principal = principal
        self._subscriptions: list[MemorySubscription] = []
        self._lost = asyncio.Event()
        self._error: LinkError | None = None

    @property
    def principal(self) -> str:
        return self._principal

    async def declare(self, *queues: Queue) -> None:
        self._check()
        for queue in queues:
            self._broker.declare(queue)

    async def publish(
        self,
        routing_key: str,
        frame: Frame,
        *,
        to_queue: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._check()
        body = bytes(frame)
        if len(body) > self._broker.max_frame_bytes:
            raise LinkRefused(
                f"a frame of {len(body)} bytes, the broker takes {self._broker.max_frame_bytes}"
            )
        stored = Stored(
            body=body, routing_key=routing_key, principal=self._principal, headers=dict(headers or {})
        )
        verdict = self._broker.policy.on_publish(self._principal, routing_key, body)
        if verdict.fault is Fault.CUT:
            self._lose(LinkError("the connection was cut before the frame went out"))
            self._check()

        def arrive() -> bool:
            if verdict.fault is Fault.DUPLICATE:
                self._broker.route(routing_key, stored, to_queue=to_queue)
            return self._broker.route(routing_key, stored, to_queue=to_queue)

        # Once sent, it arrives, whatever becomes of the sender meanwhile.
        routed = await _later(verdict.delay_s, arrive)
        if verdict.fault is Fault.CUT_AFTER:
            self._lose(LinkError("the connection was cut before the confirm came"))
        self._check()
        if not routed:
            raise Unroutable(f"no queue took the frame for {routing_key}")

    async def is_as_declared(self, queue: Queue) -> bool:
        self._check()
        return self._broker.is_as_declared(queue)

    async def subscribe(self, queue: str, *, prefetch: int, exclusive: bool = False) -> MemorySubscription:
        self._check()
        subscription = MemorySubscription(self._broker, self, queue, prefetch, exclusive=exclusive)
        self._subscriptions.append(subscription)
        return subscription

    async def depth(self, queue: str) -> Depth | None:
        self._check()
        return self._broker.depth(queue)

    async def delete(self, queue: str) -> None:
        self._check()
        self._broker.delete(queue)

    async def wait_lost(self) -> None:
        await self._lost.wait()

    @property
    def lost(self) -> LinkError | None:
        return self._error

    async def close(self) -> None:
        self._lose(LinkError("the connection is closed"))

    def _check(self) -> None:
        if self._error is not None:
            raise LinkError(self._error.message)

    def _lose(self, error: LinkError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._lost.set()
        _end_all(self._subscriptions, error)

    def _forget(self, subscription: MemorySubscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)


class MemorySubscription:
    """See `broker.transport.Subscription`."""

    def __init__(
        self,
        broker: MemoryBroker,
        transport: MemoryTransport,
        queue: str,
        prefetch: int,
        *,
        exclusive: bool = False,
    ) -> None:
        if prefetch < 1:
            raise ValueError("prefetch is at least 1")
        self.queue = queue
        self._broker = broker
        self._transport = transport
        self._prefetch = prefetch
        self._inbox = Inbox()
        self._unacked: dict[int, Stored] = {}
        self._handed_out: set[int] = set()
        self._next_tag = 1
        self._ended: LinkError | None = None
        self._held = broker.attach(self, exclusive=exclusive)
        broker.pump(self._held)

    @property
    def has_room(self) -> bool:
        return len(self._unacked) < self._prefetch

    def __aiter__(self) -> MemorySubscription:
        return self

    async def __anext__(self) -> Delivery:
        delivery = await self._inbox.get()
        self._handed_out.add(delivery.tag)
        return delivery

    async def ack(self, delivery: Delivery) -> None:
        self._check(delivery)
        del self._unacked[delivery.tag]
        self._handed_out.discard(delivery.tag)
        self._broker.pump(self._held)

    async def dead_letter(self, delivery: Delivery, reason: str) -> None:
        self._check(delivery)
        await self._transport.publish(
            topology.DEAD,
            delivery.body,
            to_queue=True,
            headers=topology.dead_letter_headers(delivery, self.queue, reason),
        )
        await self.ack(delivery)

    async def cancel(self) -> None:
        self._inbox.end()
        self._broker.detach(self._held, self)
        waiting = [tag for tag in self._unacked if tag not in self._handed_out]
        self._broker.give_back(self._held, [self._unacked.pop(tag) for tag in waiting])

    async def close(self) -> None:
        _end_all([self], None)

    def hand_out(self, stored: Stored) -> None:
        """The broker's: this message is for this consumer now."""
        tag, self._next_tag = self._next_tag, self._next_tag + 1
        self._unacked[tag] = stored
        delivery = Delivery(
            body=stored.body,
            routing_key=stored.routing_key,
            principal=stored.principal,
            redelivered=stored.returns > 0,
            headers=stored.headers,
            tag=tag,
        )
        verdict = self._broker.policy.on_deliver(self._transport.principal, self.queue, delivery)
        loop = asyncio.get_running_loop()
        if verdict.fault in (Fault.CUT, Fault.CUT_AFTER):
            loop.call_soon(self._broker.drop, self._transport)
            return
        if verdict.fault is Fault.DUPLICATE:
            self._held.ready.append(replace(stored, returns=stored.returns + 1))
        if verdict.delay_s > 0:
            loop.call_later(verdict.delay_s, self._inbox.put, delivery)
        else:
            self._inbox.put(delivery)

    def _check(self, delivery: Delivery) -> None:
        if self._ended is not None:
            raise LinkError(self._ended.message)
        if delivery.tag not in self._unacked:
            raise LinkError("the delivery is not this subscription's, or was acknowledged before")

    def _end(self, error: LinkError | None) -> list[Stored]:
        """Ended by us (no error), or by the broker. Returns what is unacknowledged."""
        if self._ended is None:
            self._ended = error or LinkError("the subscription is closed")
            self._inbox.end(error)
            self._broker.detach(self._held, self)
            self._transport._forget(self)
        unacked, self._unacked = list(self._unacked.values()), {}
        return unacked

    def _give_back(self, unacked: list[Stored]) -> None:
        self._broker.give_back(self._held, unacked)


def _end_all(subscriptions: list[MemorySubscription], error: LinkError | None) -> None:
    """All end before any message goes back: it must not go to a sibling that ends too."""
    ended = [(subscription, subscription._end(error)) for subscription in list(subscriptions)]
    for subscription, unacked in ended:
        subscription._give_back(unacked)


async def _later(delay_s: float, arrive: Callable[[], bool]) -> bool:
    """Call `arrive` after the delay, even if the caller is cancelled; its result."""
    if delay_s <= 0:
        routed = arrive()
        await asyncio.sleep(0)  # a confirm never comes at once: let others run
        return routed
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def run() -> None:
        routed = arrive()
        if not done.done():
            done.set_result(routed)

    loop.call_later(delay_s, run)
    result: bool = await done
    return result
