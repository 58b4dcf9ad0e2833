"""One subscription of a device at the gateway: deliveries wait here until the device takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from broker.gateway.budgets import HeldBytes, Holder
from broker.gateway.wire import COPIED, REDELIVERED, Kind, Packet, encode_packet, failure_packet
from broker.transport.base import Delivery, Subscription
from spliteasy.errors import LinkError, WireError

MAX_TAG = (1 << 32) - 1


class Deliveries:
    """Passes one subscription on. The broker's prefetch bounds how many deliveries wait here."""

    def __init__(
        self,
        number: int,
        subscription: Subscription,
        holder: Holder,
        held: HeldBytes,
        send: Callable[[bytes, int], Awaitable[None]],
    ) -> None:
        """`send` gets a packet, and the size in bytes of the frame in it; it returns once both are sent."""
        self._number = number
        self._subscription = subscription
        self._holder = holder
        self._held = held
        self._send = send
        self._next_tag = 1
        self._open: dict[int, Delivery] = {}
        """Not acknowledged yet, without their bodies."""
        self._waiting: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue()
        self._waiting_bytes = 0
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._pass_on())]

    async def ack(self, tag: int) -> None:
        """Raises `WireError` where no such delivery is open."""
        delivery = self._open.pop(tag, None)
        if delivery is None:
            raise WireError(f"ACK of delivery {tag}, which is not open")
        await self._subscription.ack(delivery)

    async def close(self) -> None:
        """End it: what is not acknowledged goes back to the queue. Never raises."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._held.remove(self._holder, self._waiting_bytes)
        self._waiting_bytes = 0
        await self._subscription.close()

    async def _receive(self) -> None:
        try:
            async for delivery in self._subscription:
                tag, self._next_tag = self._next_tag, self._next_tag % MAX_TAG + 1
                self._open[tag] = replace(delivery, body=b"")
                self._put(encode_packet(self._packet(tag, delivery)), len(delivery.body))
        except LinkError as error:
            self._put(encode_packet(failure_packet(Kind.ENDED, self._number, error)), 0)

    def _packet(self, tag: int, delivery: Delivery) -> Packet:
        return Packet(
            kind=Kind.DELIVERY,
            flags=REDELIVERED * delivery.redelivered | COPIED * delivery.copied,
            number=self._number,
            argument=tag,
            text=f"{delivery.routing_key}\n{delivery.principal or ''}",
            body=delivery.body,
        )

    def _put(self, packet: bytes, frame_bytes: int) -> None:
        self._waiting.put_nowait((packet, frame_bytes))
        self._waiting_bytes += len(packet)
        self._held.add(self._holder, len(packet))

    async def _pass_on(self) -> None:
        while True:
            packet, frame_bytes = await self._waiting.get()
            await self._send(packet, frame_bytes)
            self._waiting_bytes -= len(packet)
            self._held.remove(self._holder, len(packet))
