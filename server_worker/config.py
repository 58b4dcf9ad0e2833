"""A worker's settings."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from enum import Enum

import torch

from broker.protocol.assembler import AssemblerLimits
from broker.protocol.frames import CHUNK_BYTES
from broker.protocol.messages import new_nonce
from broker.transport.patience import UNREACHABLE_S
from broker.transport.topology import DEFAULT_SHARDS, QueueType
from server_worker.admission.quotas import DeviceQuota
from spliteasy.runtime import worker_defaults as defaults

CLAIM_S = 0.4
"""Seconds (95th percentile) from when the broker gives a worker up until another one has its sessions."""

MIB = 1 << 20


def amqp_heartbeat_s(takeover_s: int) -> int:
    """Return the heartbeat of a worker's connections that moves its sessions within `takeover_s` of silence.

    RabbitMQ looks once a heartbeat whether anything came, and closes a connection that was silent at two
    looks after the last byte: two to three heartbeats later. aiormq sends one each half heartbeat, but at
    most one a second, so that an event loop may stand still for two heartbeats less a second without harm.
    A worker that is closed by mistake connects again; the steps that it did not commit are computed again.
    """
    if takeover_s < 5:
        raise ValueError("under 5 s a worker that sends a heartbeat every second would be taken for dead")
    return int((takeover_s - CLAIM_S) / 3)


class Trust(Enum):
    """The rule by which a worker believes that a sender is a device."""

    ENROLLED = "enrolled"
    """The broker's authenticated sender must be the device that the routing key names."""
    OPEN = "open"
    """One account shared by all: any client may speak for any device. For a local stack only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Settings of one worker; the name must be its own among all workers."""

    name: str = field(
        default_factory=lambda: f"{socket.gethostname().lower()}-{os.getpid()}-{new_nonce()[:4]}"
    )
    trust: Trust = Trust.ENROLLED
    shards: int = DEFAULT_SHARDS
    """The number of shards that the stack has, or gets where this is its first worker: `settle_shards`."""
    queues: QueueType = QueueType.QUORUM
    """The type that the stack's queues have, or get where this is its first worker: `settle_queue_type`."""
    prefetch: int = 64
    """Unacknowledged deliveries of one queue: at least the sessions of a shard that are served at once."""
    chunk_bytes: int = CHUNK_BYTES
    memory_bytes: int = defaults.MEMORY_MIB * MIB
    """Sessions beyond this are parked, the least recently used first."""
    waiting_bytes: int = defaults.WAITING_MIB * MIB
    """Requests that came before others of their step and wait for them, of all sessions; beyond it BUSY."""
    rows_bytes: int = defaults.ROWS_MIB * MIB
    """Rows of activations that devices name again may take this much, of all sessions; 0: none are kept."""
    jobs: int = defaults.JOBS
    """Job programs kept, the least recently used dropped first."""
    request_tflop: float = defaults.REQUEST_TFLOP
    """Jobs are refused of which one request takes more floating-point operations, in millions of millions."""
    patience_s: float = UNREACHABLE_S
    """The first connection to the broker may take this long."""
    give_up_s: float | None = None
    """Each later connection may take this long; None waits without end."""
    drain_s: float = defaults.DRAIN_S
    """A stopping worker has this long to finish the requests that have begun."""
    heartbeat_s: float = 1.0
    """The interval at which the worker writes into the store that it lives, and what it serves."""
    dead_bytes: int = defaults.DEAD_MIB * MIB
    """The broker keeps this many bytes of the newest dead letters; the same for all workers."""
    retention_check_s: float = 600.0
    """The interval at which abandoned sessions are looked for."""
    uploads: AssemblerLimits = field(default_factory=AssemblerLimits)
    quota: DeviceQuota = field(default_factory=DeviceQuota)
    """The quota of each device."""
    balance: bool = True
    """Hand shards over to workers that have fewer sessions."""


def environment() -> str:
    """Say on one line what decides the bits of a computation: torch, CPU capability, threads."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {capability}, {torch.get_num_threads()} threads"
