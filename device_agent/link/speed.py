"""The speed of the link, measured by its own traffic: nothing is sent to find out."""

from __future__ import annotations

import math

SMALL_BYTES = 4096
"""A message below this shows the round trip; one above it the rate."""

_SHORTEST_S = 1e-6


class LinkSpeed:
    """Round trip and rates. Times are from one clock, in seconds; rates in bytes per second.

    All are None until there was traffic to tell. They are written on the event loop and may be read anywhere.
    """

    def __init__(self) -> None:
        self.rtt_s: float | None = None
        self.up: float | None = None
        self._down: float | None = None
        self._first_s: float | None = None
        self._bytes = 0

    @property
    def down(self) -> float | None:
        """Return the downlink's speed as measured between the frames of a reply. Until a reply had several
        frames it is the uplink's: rarely is a downlink the slower one."""
        return self.up if self._down is None else self._down

    @property
    def slower(self) -> float | None:
        """The rate of the direction that is slower, as far as it is known."""
        rates = [rate for rate in (self.up, self.down) if rate is not None]
        return min(rates, default=None)

    def connected(self) -> None:
        """A connection was made, over who knows what network: the round trip is measured again."""
        self.rtt_s = None
        self._first_s = None

    def sent(self, nbytes: int, seconds: float) -> None:
        """The broker confirmed the last frame of a message so long after the first was begun."""
        if nbytes < SMALL_BYTES:
            self.rtt_s = seconds if self.rtt_s is None else min(self.rtt_s, seconds)
        else:
            # Where the round trip is nearly all of it, the rest says little: at least a quarter counts.
            transfer_s = max(seconds - (self.rtt_s or 0.0), seconds / 4, _SHORTEST_S)
            self.up = _mixed(self.up, nbytes / transfer_s)

    def gave_up(self, nbytes: int, seconds: float) -> None:
        """A frame of so many bytes was not confirmed in so long, and then the connection was lost."""
        if self.up is None or nbytes < self.up * seconds:
            self.up = nbytes / max(seconds, _SHORTEST_S)

    def arrived(self, nbytes: int, now_s: float, *, last: bool) -> None:
        """A frame of a reply has come whole; `last`: with it the reply is whole."""
        if self._first_s is None:
            self._first_s, self._bytes = now_s, 0
        else:
            self._bytes += nbytes
        if last:
            if self._bytes >= SMALL_BYTES:
                self._down = _mixed(self._down, self._bytes / max(now_s - self._first_s, _SHORTEST_S))
            self._first_s = None


def _mixed(before: float | None, now: float) -> float:
    """Halfway, as factors go: a link that became a thousand times slower shows in three messages."""
    return now if before is None else math.sqrt(before * now)
