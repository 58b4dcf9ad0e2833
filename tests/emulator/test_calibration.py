"""The emulator's rates and delays as plain sockets see them: the one test that measures time.

A busy machine would fail it, so it is one of the long ones, which run alone; `test_line.py` holds the same
rates in virtual time at every run. The emulator is a process of its own here, as in benchmarks. A figure is
the median of several; where it is off, it is measured again, twice at most, and then believed.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.emulator import PROFILES

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 0.05
TRIES = 3


@contextmanager
def emulating(profile: str, target_port: int) -> Iterator[int]:
    """The port of an emulator in another process."""
    command = [sys.executable, "-m", "benchmarks.emulator", "--profile", profile, "--stdin"]
    command += ["--to", f"127.0.0.1:{target_port}"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield json.loads(process.stdout.readline())["ports"][0]
        process.stdin.close()


@contextmanager
def both_ends(profile: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(device, server), connected over the link."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        emulating(profile, listening.getsockname()[1]) as port,
        socket.create_connection(("127.0.0.1", port), timeout=20) as device,
    ):
        listening.settimeout(20)
        server, _ = listening.accept()
        server.settimeout(20)
        with server:
            yield device, server


def round_trip_s(device: socket.socket, server: socket.socket) -> float:
    trips = []
    for _ in range(7):
        start = time.perf_counter()
        device.sendall(b"?")
        server.sendall(server.recv(1))
        device.recv(1)
        trips.append(time.perf_counter() - start)
    return statistics.median(trips)


def rate_bytes_s(sender: socket.socket, receiver: socket.socket, count: int) -> float:
    """Return the rate from the first bytes' arrival to the last's."""
    sending = threading.Thread(target=sender.sendall, args=(bytes(count),))
    sending.start()
    first = received = len(receiver.recv(1 << 16))
    start = end = time.perf_counter()
    while received < count:
        received += len(receiver.recv(1 << 16))
        end = time.perf_counter()
    sending.join()
    return (received - first) / (end - start)


def assert_within(expected: float, measure: Callable[[], float]) -> None:
    seen: list[float] = []
    while len(seen) < TRIES:
        seen.append(measure())
        if abs(seen[-1] / expected - 1) <= TOLERANCE:
            return
    pytest.fail(f"expected {expected:.6g} within {TOLERANCE:.0%}, measured {seen}")


@pytest.mark.parametrize("name", ["wifi", "lte", "3g"])
def test_rates_and_round_trips_are_within_five_percent(name: str) -> None:
    profile = PROFILES[name]
    assert profile.up_bytes_s is not None
    assert profile.down_bytes_s is not None
    with both_ends(name) as (device, server):
        if profile.jitter_s == 0:
            assert_within(2 * profile.latency_s, lambda: round_trip_s(device, server))
        for sender, receiver, rate in (
            (device, server, profile.up_bytes_s),
            (server, device, profile.down_bytes_s),
        ):
            assert_within(rate, lambda: rate_bytes_s(sender, receiver, int(rate * 0.4)))  # noqa: B023


def test_without_a_link_the_same_copy_is_much_faster() -> None:
    """The figures above are the link's, and not this test's own limits."""
    with both_ends("open") as (device, server):
        assert round_trip_s(device, server) < PROFILES["lte"].latency_s
        fastest = PROFILES["wifi"].up_bytes_s
        assert fastest is not None
        assert max(rate_bytes_s(device, server, 1 << 24) for _ in range(TRIES)) > 2 * fastest
