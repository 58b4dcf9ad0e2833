"""Many parked sessions cost bytes of Redis each. This measures them, and a look at what is active.

    python -m benchmarks.sessions [--sessions 100 10000 100000]

A worker serves beside them. `look` is one of the dashboard's and of `status --watch`; `status` is the whole
command, of which starting Python and connecting is most.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import ROOT, Field, Services, services
from benchmarks.harness.submission import submit, until_served
from benchmarks.harness.timed_runs import ONE_THREAD, cpu_seconds
from benchmarks.harness.workloads import W0
from server_worker.store import Attempt, Done, Store, open_store
from server_worker.store.redis.link import RedisLink, connect
from spliteasy_cli.watch.cluster import ClusterClient

TOGETHER = 64
"""Sessions that are opened at a time."""

JOB = "parked"
ENVIRONMENT = "torch 2.9.0, AVX512, 1 threads, probe " + "0" * 32
LOOKS = 9
REST_S = 10.0
"""A worker's processor time is taken over so many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """One number of parked sessions: medians in seconds, Redis's bytes a session, the shares of a core that a
    worker and Redis take while nobody trains."""

    sessions: int
    bytes_each: float
    look_s: float
    status_s: float
    worker_cpu: float
    store_cpu: float


def measure(running: Services, counts: Sequence[int], *, rest_s: float = REST_S) -> list[Parked]:
    """Park sessions, more and more of them, and look at each number."""
    submit(W0.job(JOB), running.store)
    with Field(running) as field:
        worker = field.worker()
        asyncio.run(until_served(running.store))
        return asyncio.run(_measure(running, worker, sorted(counts), rest_s))


async def _measure(running: Services, worker: int, counts: Sequence[int], rest_s: float) -> list[Parked]:
    store, link = await open_store(running.store), await connect(running.store)
    digest, found, there = (await store.job_versions())[JOB][0], list[Parked](), 0
    before = await _used(link)
    for count in counts:
        for first in range(there, count, TOGETHER):
            numbers = range(first, min(first + TOGETHER, count))
            await asyncio.gather(*(_park(store, digest, number) for number in numbers))
        there = count
        pids = [worker, running.pids()["store"]]
        began = [cpu_seconds(pid) for pid in pids]
        await asyncio.sleep(rest_s)
        worker_cpu, store_cpu = [
            (cpu_seconds(pid) - at) / rest_s for pid, at in zip(pids, began, strict=True)
        ]
        found.append(
            Parked(
                sessions=count,
                bytes_each=(await _used(link) - before) / count,
                look_s=await _look_s(running),
                status_s=statistics.median([await asyncio.to_thread(_status_s, running) for _ in range(3)]),
                worker_cpu=worker_cpu,
                store_cpu=store_cpu,
            )
        )
        print(found[-1], file=sys.stderr, flush=True)
    await store.close()
    await link.close()
    return found


async def _park(store: Store, digest: str, number: int) -> None:
    outcome = await store.open_session(
        f"{JOB}.phone-{number:06}",
        job_digest=digest,
        attempt=Attempt(number=1, nonce="a" * 16),
        held=(0,),
        worker="w" * 16,
        environment=ENVIRONMENT,
        agent="0.2.0",
        total_steps=1000,
    )
    assert isinstance(outcome, Done)


async def _used(link: RedisLink) -> int:
    return int((await link.call("INFO", "memory"))["used_memory"])


async def _look_s(running: Services) -> float:
    """Return the median of some looks over one connection."""
    seconds = []
    async with ClusterClient(running.broker, running.store) as cluster:
        await cluster.look()
        for _ in range(LOOKS):
            began = time.perf_counter()
            await cluster.look()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _status_s(running: Services) -> float:
    """Return how long the command takes."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "spliteasy_cli", "status"],
        cwd=ROOT,
        env={
            **os.environ,
            **ONE_THREAD,
            "SPLITEASY_BROKER": running.broker,
            "SPLITEASY_STORE": running.store,
        },
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began


def table_of(figures: Sequence[Parked]) -> Table:
    """One row a number of sessions."""
    rows = [
        [
            f"{one.sessions:,}",
            f"{one.bytes_each:,.0f}",
            f"{one.look_s * 1000:.1f}",
            f"{one.status_s:.2f}",
            f"{one.worker_cpu:.1%}",
            f"{one.store_cpu:.1%}",
            goal("look < 1 s", one.look_s < 1),
        ]
        for one in figures
    ]
    head = ["parked", "bytes each", "look, ms", "status, s", "worker's core", "Redis's core", "goal"]
    return Table("parked sessions", head, rows)


def main() -> None:
    """Start broker, store and a worker, and measure them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sessions", description=__doc__)
    parser.add_argument("--sessions", type=int, nargs="+", default=[100, 10_000, 100_000])
    asked = parser.parse_args()
    began = show_about()
    with services() as running:
        figures = measure(running, asked.sessions)
    table = table_of(figures)
    table.show()
    save("sessions", [asdict(one) for one in figures], [table], began)


if __name__ == "__main__":
    main()
