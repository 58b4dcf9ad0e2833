"""The conditions of a plan: a device, its link, the server, and the constraints on the cut."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Device, link and server. Speeds are relative to the machine that plans."""

    up_bytes_s: float
    down_bytes_s: float
    rtt_s: float
    device_speed: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """One speed for each of `costs.KINDS`."""
    server_speed: float = 1.0
    round_trip_s: float = 0.0
    """A request and its reply take this long in agent, broker, worker and store, beside computing and the
    link."""
    byte_s: float = 0.0
    """The same for each byte that travels: packing, checksums, queues, the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Constraints that a cut must meet. None and 0 ask nothing."""

    device_memory: int | None = None
    """Bytes that head, tail and their step may take at most."""
    min_head_layers: int = 0
    """Modules with weights that the head has at least."""
    min_tail_layers: int = 0
    """The same of the tail: without one, gradients tell the labels."""
    max_input_correlation: float | None = None
    """Distance correlation between inputs and what the head sends, at most."""
