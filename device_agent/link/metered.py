"""Keeps a link within a day's allowance, in the middle of a step too, no matter who asks for bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from device_agent.policy.data_budget import Allowance
from spliteasy.errors import LinkError, StateError
from spliteasy.runtime.readable import size

LOOK_EVERY_S = 10.0


class Metered:
    """A daily allowance that a `Link` asks before it sends, and informs of what it received.

    It is disconnected where a day's bytes are used up, as what comes can't be refused otherwise, and connects
    again on another day.
    """

    def __init__(
        self, allowance: Allowance, *, failed: Callable[[StateError], object], tell: Callable[[str], object]
    ) -> None:
        """`failed` is called where the used bytes can't be written down."""
        self._allowance = allowance
        self._failed = failed
        self._tell = tell
        self._spent_on = ""

    def sending(self, nbytes: int) -> None:
        """Count bytes before they leave. Raises LinkError where the day's allowance has no room for them."""
        self._check(nbytes)
        self._count(nbytes)

    def received(self, nbytes: int) -> None:
        """Count bytes that have come. Raises LinkError where they were more than there was room for."""
        self._count(nbytes)
        self._check(0)

    async def room(self) -> None:
        """Return when there may be a connection."""
        told = False
        while self._spent_on == self._allowance.day:
            if not told:
                self._tell(self._reason())
                told = True
            await asyncio.sleep(LOOK_EVERY_S)

    def _check(self, nbytes: int) -> None:
        if self._allowance.used + nbytes > self._allowance.limit_bytes:
            self._spent_on = self._allowance.day
            raise LinkError(self._reason())

    def _count(self, nbytes: int) -> None:
        try:
            self._allowance.count(nbytes)
        except StateError as error:
            self._failed(error)

    def _reason(self) -> str:
        used, limit = size(self._allowance.used), size(self._allowance.limit_bytes)
        return (
            f"disconnected: {used} of today's {limit} (--metered) are used, and the step needs more; "
            "it goes on tomorrow, or started again with a larger --metered"
        )
