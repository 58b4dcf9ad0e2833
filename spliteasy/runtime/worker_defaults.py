"""The defaults of those worker settings that the command line shows.

They are in a file of their own, because `server_worker.config` imports torch and `--help` must not.
"""

from __future__ import annotations

MEMORY_MIB = 4096
"""Sessions may fill this much memory before the least recently used one is parked."""
WAITING_MIB = 1024
"""Requests that wait for earlier ones of their step may fill this much memory, over all sessions."""
ROWS_MIB = 1024
"""Rows of activations that a device with a frozen head names again, in place of sending them, may fill this
much memory, over all sessions; one session may have half of it."""
DEAD_MIB = 256
"""The broker keeps this much of the newest dead letters."""
JOBS = 32
"""A worker keeps the programs of this many jobs in memory."""
REQUEST_TFLOP = 100.0
"""One request may take this many million million operations: a quarter of an hour at 100 GFLOP/s, and half of
the time after which RabbitMQ takes a request from a worker that has not ended it."""
DRAIN_S = 20.0
"""A stopping worker has this long to finish the requests that it has begun."""
DEVICE_MESSAGES_PER_S = 2000.0
"""One device may send this many messages a second."""
DEVICE_MIB_PER_S = 1024.0
"""One device may send this much a second."""
DEVICE_SESSIONS = 8
"""One device may train this many jobs at a time."""
TAKEOVER_S = 5
"""The sessions of a worker that falls silent move to another worker within this time."""
MAX_SHARDS = 1000
"""A stack may have this many shards."""
