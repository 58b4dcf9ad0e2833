"""Laps: a contestant's process takes so many steps on request, and reports how long each took.

The process reads a number of steps a line from standard input and answers with JSON: `seconds` of each step
and, where it knows them, the bytes that it sent (`up`) and received (`down`) in the lap, its `step` and its
last `loss`.
So contestants wait beside each other, and take turns within one run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""Settings for all processes of all systems alike: else page faults are measured."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def serve_laps(step: Callable[[], object]) -> None:
    """Take steps as asked until standard input ends."""
    answer("ready")
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        answer({"seconds": seconds})


def answer(value: object) -> None:
    """One line to the process that counts the laps."""
    print(json.dumps(value), flush=True)


def cpu_seconds(pid: int) -> float:
    """Processor time so far of a process, its threads, and its children that have ended."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    """The most memory that the process has had resident."""
    return _status(pid, "VmHWM")


def resident_bytes(pid: int) -> int:
    return _status(pid, "VmRSS")


def _status(pid: int, name: str) -> int:
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    raise ValueError(f"no {name} of {pid}")
