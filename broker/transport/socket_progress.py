"""The bytes that went through a TCP socket, as the kernel counts them: the sign of life of a slow link.

A frame may take longer on a slow link than any deadline. Bytes that the other end has acknowledged, or that
came from it, tell sooner whether the link still works.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

LEAST_BYTES_S = 256
"""Bytes a second (2 kbit/s) from which on a transfer counts as going on: heartbeats are fewer."""

_TCP_INFO_BYTES, _BYTES_ACKED = 136, 120
"""The part of Linux's `struct tcp_info` up to `tcpi_bytes_received`, and where the two counts begin."""


@dataclass(frozen=True, slots=True)
class TcpBytes:
    """Bytes that the other end has acknowledged, and that have come from it, since the connection began."""

    acked: int = 0
    received: int = 0


def tcp_bytes(found: socket.socket | None) -> TcpBytes | None:
    """The counts of a socket; None where it is closed or the system does not tell."""
    if found is None or not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info: bytes = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _TCP_INFO_BYTES:
        return None
    return TcpBytes(*struct.unpack_from("QQ", info, _BYTES_ACKED))
