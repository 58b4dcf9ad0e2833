"""Profiles of links: rates, delays, outages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

_MBIT = 1_000_000 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """The link is up for `every_s`, then down for `for_s`, and so on from when the emulator starts.

    Down by "cut": connections are reset and new ones refused. By "stall": nothing passes meanwhile.
    """

    every_s: float
    for_s: float
    kind: Literal["cut", "stall"] = "cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A link as its device sees it. Rates hold for all connections together; None means no limit."""

    up_bytes_s: float | None = None
    down_bytes_s: float | None = None
    latency_s: float = 0.0
    """One way; a round trip takes twice as long."""
    jitter_s: float = 0.0
    """Each piece is late by up to this more, evenly distributed; pieces never overtake each other."""
    outage: Outage | None = None

    def __post_init__(self) -> None:
        rates = (rate for rate in (self.up_bytes_s, self.down_bytes_s) if rate is not None)
        if any(rate <= 0 for rate in rates) or self.latency_s < 0 or self.jitter_s < 0:
            raise ValueError(f"rates are above 0, delays not below: {self}")


_LTE = Profile(up_bytes_s=20 * _MBIT, down_bytes_s=50 * _MBIT, latency_s=0.025)

PROFILES = {
    "open": Profile(),
    "lan": Profile(up_bytes_s=1000 * _MBIT, down_bytes_s=1000 * _MBIT, latency_s=0.0002),
    "wifi": Profile(up_bytes_s=100 * _MBIT, down_bytes_s=100 * _MBIT, latency_s=0.002, jitter_s=0.002),
    "lte": _LTE,
    "far": Profile(latency_s=0.05),
    "3g": Profile(up_bytes_s=1 * _MBIT, down_bytes_s=4 * _MBIT, latency_s=0.075),
    "2g": Profile(up_bytes_s=0.05 * _MBIT, down_bytes_s=0.1 * _MBIT, latency_s=0.4),
    "satellite": Profile(up_bytes_s=5 * _MBIT, down_bytes_s=25 * _MBIT, latency_s=0.3),
    "flaky-lte": replace(_LTE, outage=Outage(every_s=10, for_s=3)),
}
