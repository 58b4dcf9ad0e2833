"""A request on its way through a worker, from the intake to its session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from broker.protocol import messages as m


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The end of a delivery in the broker. Neither way raises where the link is gone: it comes again then."""

    ack: Callable[[], Awaitable[None]]
    dead_letter: Callable[[str], Awaitable[None]]
    """Moves it to the dead queue, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """A whole request from the device that it names."""

    request: m.AnyRequest
    raw: memoryview
    """The request as received, for the log."""
    reply_to: str
    chunk_bytes: int
    """The size of its chunks: the device chose it by its link, so its replies are cut no coarser."""
    again: bool
    """True where it was delivered before, to a worker that did not finish it."""
    arrived_s: float
    """When its last frame came, by the worker's clock."""
    settlement: Settlement

    async def ack(self) -> None:
        """It was served."""
        await self.settlement.ack()

    async def dead_letter(self, reason: str) -> None:
        """It can never be served: it is kept for a person to look at."""
        await self.settlement.dead_letter(reason)
