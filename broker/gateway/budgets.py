"""The memory that all connections of a gateway share: frames on their way up, and deliveries."""

from __future__ import annotations

from typing import Protocol

from broker.gateway.limits import GatewayLimits
from broker.transport.send_window import SendWindow
from spliteasy.errors import LinkDeferred, LinkError

UNBOUNDED_FRAMES = 1 << 30
"""Frames of all devices are bounded by their bytes alone."""


class Holder(Protocol):
    """A connection that deliveries wait for."""

    def end(self, error: LinkError) -> None:
        """Disconnect it."""
        ...


class HeldBytes:
    """Counts the deliveries that wait for their readers. Beyond the limit the largest holder is disconnected:
    the broker keeps what it did not take, and it may come again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.total = 0
        self._limit_bytes = limit_bytes
        self._by_holder: dict[Holder, int] = {}

    def add(self, holder: Holder, nbytes: int) -> None:
        """Count a delivery that came for the holder."""
        self._by_holder[holder] = self._by_holder.get(holder, 0) + nbytes
        self.total += nbytes
        if self.total > self._limit_bytes:
            largest = max(self._by_holder, key=lambda each: self._by_holder[each])
            largest.end(LinkDeferred("this device reads too slowly for what waits for it at the gateway"))

    def remove(self, holder: Holder, nbytes: int) -> None:
        """Take note that so much was sent, or given up."""
        left = self._by_holder.get(holder, 0) - nbytes
        self.total -= nbytes
        if left > 0:
            self._by_holder[holder] = left
        else:
            self._by_holder.pop(holder, None)


class Budgets:
    """Both budgets of one gateway."""

    def __init__(self, limits: GatewayLimits) -> None:
        self.in_flight_bytes = 0
        self.held = HeldBytes(limits.held_bytes)
        self._window = SendWindow(UNBOUNDED_FRAMES, lambda: limits.total_in_flight_bytes)

    async def acquire(self, nbytes: int) -> None:
        """Return when a frame of that size may go up."""
        await self._window.acquire(nbytes)
        self.in_flight_bytes += nbytes

    def release(self, nbytes: int) -> None:
        """The frame was confirmed, or is given up."""
        self.in_flight_bytes -= nbytes
        self._window.release(nbytes)
