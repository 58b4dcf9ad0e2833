"""The bounds of one gateway: for a device, for an address, and in all."""

from __future__ import annotations

from dataclasses import dataclass

from broker.protocol.frames import FRAME_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """Every bound of a gateway. Where a limit is reached, the newest asker waits or is turned away."""

    connections: int = 4096
    per_address: int = 64
    """Connections of one address. Behind a balancer that hides addresses all come from one."""
    strangers: int = 512
    """Connections that have not named an account yet; beyond it, the one that has taken longest is closed."""
    authenticate_s: float = 10.0
    """Seconds from the first packet of TCP to an account that the broker has accepted."""
    frame_bytes: int = FRAME_BYTES
    """The largest frame: agents cut their messages into such and smaller ones."""
    frames_in_flight: int = 16
    in_flight_bytes: int = 8 << 20
    """Frames of one device that wait for the broker's confirm; then nothing more is read from it."""
    total_in_flight_bytes: int = 256 << 20
    """The same, of all devices."""
    prefetch: int = 16
    """Deliveries that one subscription may have unacknowledged, whatever it asks for."""
    subscriptions: int = 4
    """Queues that one connection may read."""
    held_bytes: int = 256 << 20
    """Deliveries that wait for their readers, of all devices; beyond it, the one with most has to go."""
    ping_s: float = 5.0
    """Seconds between signs of life, by which a device knows that its link lives."""
    silence_s: float = 30.0
    """A device from which nothing came for so long is disconnected."""
    slow_reader_s: float = 30.0
    """A device that takes nothing of what waits for it for so long is disconnected."""
    drain_s: float = 5.0
    """Seconds that a stopping gateway waits for confirms."""
