"""Names of exchanges, queues and routing keys (docs/wire.md)."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum

from broker.transport.base import Delivery, Queue


class QueueType(StrEnum):
    """The type of the queues that workers read. The store knows which one a stack has."""

    CLASSIC = "classic"
    """On one node, in memory: what they hold is gone with the node, and is sent again."""
    QUORUM = "quorum"
    """Copied to other nodes of a cluster, and written to disk."""


UPLINK = "spliteasy.uplink"
"""Topic exchange that devices publish to, with routing key `s.<device>.<shard>`."""

DEAD = "spliteasy.dead"
"""Dead-letter exchange (fanout) and queue."""

FRONT = "spliteasy.front"
FRONT_SHARD = "front"
DEFAULT_SHARDS = 16
"""Shards of a stack that was not told another number. The store knows how many a stack has."""
IDENTIFIER = re.compile(r"[a-z0-9-]{1,63}")
REPLY_QUEUE = re.compile(r"spliteasy\.reply\.([a-z0-9-]{1,63})\.([0-9a-f]{16,64})")
REPLY_TO = "reply-to"
"""Header of every frame from a device: the reply queue that it reads now."""

REPLY_EXPIRES_S = 120.0
"""A reply queue without a reader is deleted after this long."""


def shard_of(replica: str, shards: int) -> int:
    """Return the shard of a replica (for personal replicas: of the session `<job>.<device>`).

    For workers, which know how many shards there are: devices are told by JOB and OPENED.
    """
    return int.from_bytes(hashlib.blake2b(replica.encode(), digest_size=8).digest(), "big") % shards


def shard_label(shard: int) -> str:
    return f"{shard:02d}"


def uplink_key(device: str, shard: int | None) -> str:
    """The routing key of what a device publishes; shard None: to the front queue."""
    return f"s.{device}.{FRONT_SHARD if shard is None else shard_label(shard)}"


def device_of_key(routing_key: str) -> str | None:
    """The device that a routing key names; None where the key is not one of ours."""
    parts = routing_key.split(".")
    return parts[1] if len(parts) == 3 and parts[0] == "s" and IDENTIFIER.fullmatch(parts[1]) else None


def reply_queue(device: str, nonce: str) -> Queue:
    """The queue that one connection of a device reads replies from."""
    return Queue(name=f"spliteasy.reply.{device}.{nonce}", expires_s=REPLY_EXPIRES_S)


REPLY_SLOTS = 16
"""A device may have this many reply queues. Its connections take them in turn, so that its account need not
be allowed to make queues without number."""


def reply_slot(device: str, slot: int) -> Queue:
    """One of the device's reply queues, by number."""
    return reply_queue(device, f"{slot % REPLY_SLOTS:016x}")


def is_reply_slot(name: str, device: str) -> bool:
    """Return True where it is one of the names that `reply_slot` gives the device's queues."""
    return any(name == reply_slot(device, slot).name for slot in range(REPLY_SLOTS))


def device_of_reply_queue(name: str) -> str | None:
    """The device that a reply queue belongs to; None where the name is not one of a reply queue."""
    match = REPLY_QUEUE.fullmatch(name)
    return match.group(1) if match else None


def front_queue(kind: QueueType = QueueType.QUORUM) -> Queue:
    return Queue(
        name=FRONT, quorum=kind is QueueType.QUORUM, bindings=(f"s.*.{FRONT_SHARD}",), dead_letters=True
    )


def shard_queue(shard: int, kind: QueueType = QueueType.QUORUM) -> Queue:
    label = shard_label(shard)
    return Queue(
        name=f"spliteasy.shard.{label}",
        quorum=kind is QueueType.QUORUM,
        single_active=True,
        bindings=(f"s.*.{label}",),
        dead_letters=True,
    )


DEAD_BYTES = 256 << 20
"""The dead letters that are kept at most; beyond it the oldest go."""


def dead_queue(max_bytes: int = DEAD_BYTES, kind: QueueType = QueueType.QUORUM) -> Queue:
    return Queue(name=DEAD, quorum=kind is QueueType.QUORUM, max_bytes=max_bytes)


def matches(pattern: str, key: str) -> bool:
    """AMQP topic matching, where `*` is one word; we bind no `#`."""
    words, asked = key.split("."), pattern.split(".")
    return len(words) == len(asked) and all(a in ("*", w) for a, w in zip(asked, words, strict=True))


def dead_letter_headers(delivery: Delivery, queue: str, reason: str) -> dict[str, str]:
    """Return the headers of a dead letter. `reason` is for a person; brokers give "delivery_limit"."""
    return {
        "reason": reason,
        "queue": queue,
        "principal": delivery.principal or "",
        "routing_key": delivery.routing_key,
    }


def worker_queues(
    shards: int, kind: QueueType = QueueType.QUORUM, *, dead_bytes: int = DEAD_BYTES
) -> tuple[Queue, ...]:
    """All that workers declare at start."""
    return (dead_queue(dead_bytes, kind), front_queue(kind), *(shard_queue(n, kind) for n in range(shards)))
