"""Admission bounds who is connected to a gateway: in all, from one address, and without an account."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from broker.gateway.limits import GatewayLimits


class Visit:
    """One socket that was accepted, until it is closed. A stranger's is closed after a while."""

    def __init__(self, address: str, leave: Callable[[Visit], None]) -> None:
        self.address = address
        self.transport: asyncio.Transport | None = None
        """Set once the connection stands, TLS included."""
        self.greeting: asyncio.Task[None] | None = None
        """Sets the connection up."""
        self.timer: asyncio.TimerHandle | None = None
        self._leave = leave

    def turn_away(self) -> None:
        """Close the socket at once."""
        if self.transport is not None:
            self.transport.abort()
        elif self.greeting is not None:
            self.greeting.cancel()

    def leave(self) -> None:
        """The socket is closed. Again, it does nothing."""
        self._leave(self)


class Admission:
    """Counts visits. A stranger beyond their limit makes the oldest of them go: a device that names its
    account at once is not kept out by those who name none.
    """

    def __init__(self, limits: GatewayLimits, *, turned_away: Callable[[str], None]) -> None:
        """`turned_away` is told why, each time."""
        self._limits = limits
        self._turned_away = turned_away
        self._visits: set[Visit] = set()
        self._strangers: dict[Visit, None] = {}
        """The oldest first."""
        self._by_address: Counter[str] = Counter()

    @property
    def visits(self) -> int:
        """Sockets that are open."""
        return len(self._visits)

    @property
    def strangers(self) -> int:
        """Those of them that have not named an account yet."""
        return len(self._strangers)

    @property
    def full(self) -> bool:
        """True where nobody more is let in."""
        return len(self._visits) >= self._limits.connections

    def enter(self, address: str) -> Visit | None:
        """A visit from that address; None where it has to be closed at once."""
        if self.full or self._by_address[address] >= self._limits.per_address:
            self._turned_away("full" if self.full else "address")
            self._by_address += Counter()  # forgets who has none
            return None
        if len(self._strangers) >= self._limits.strangers:
            oldest = next(iter(self._strangers))
            self._end_of_strangeness(oldest)
            self._turned_away("strangers")
            oldest.turn_away()
        visit = Visit(address, self._left)
        visit.timer = asyncio.get_running_loop().call_later(
            self._limits.authenticate_s, self._took_too_long, visit
        )
        self._visits.add(visit)
        self._strangers[visit] = None
        self._by_address[address] += 1
        return visit

    def authenticated(self, visit: Visit) -> None:
        """The broker has accepted its account: it may stay."""
        self._end_of_strangeness(visit)

    def _took_too_long(self, visit: Visit) -> None:
        self._end_of_strangeness(visit)
        self._turned_away("slow to authenticate")
        visit.turn_away()

    def _end_of_strangeness(self, visit: Visit) -> None:
        self._strangers.pop(visit, None)
        if visit.timer is not None:
            visit.timer.cancel()
            visit.timer = None

    def _left(self, visit: Visit) -> None:
        if visit not in self._visits:
            return
        self._end_of_strangeness(visit)
        self._visits.remove(visit)
        self._by_address[visit.address] -= 1
        if not self._by_address[visit.address]:
            del self._by_address[visit.address]
