"""The timeouts and limits of a connection to RabbitMQ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AmqpOptions:
    """The timeouts and limits of a connection."""

    tcp_timeout_s: float = 8.0
    """TCP and TLS may take this long: where the first packets are lost, a new attempt comes before their
    repeats."""
    connect_timeout_s: float = 15.0
    call_timeout_s: float = 30.0
    """Declaring, subscribing and the like may take this long."""
    publish_timeout_s: float = 60.0
    """A broker that blocks publishers (no memory, no disk) confirms nothing for as long. It runs from when
    the last bytes got through: on a slow link a frame takes as long as it takes."""
    close_timeout_s: float = 5.0
    heartbeat_s: int = 5
    """The broker sends something at least once in this time, most often in half of it."""
    watchdog_s: float = 1.0
    """The interval at which connections and consumers are checked."""
    silence_s: float | None = None
    """The link is given up when nothing came on either connection for so long; None: 1.5 heartbeats, but no
    less than 5 s. One connection alone may be silent for (heartbeat + 1) × 3 seconds."""
    stream_bytes: int = 4 << 20
    """The read buffer of a connection; asyncio's 64 KiB costs a third of the throughput."""
    delivery_limit: int = 20
    max_frame_bytes: int = 16 << 20
    """RabbitMQ 4 closes the channel over it."""
    ack_delay_s: float = 0.02
    """An ack may wait this long for others."""
