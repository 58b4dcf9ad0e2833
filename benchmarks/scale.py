"""Workers beside each other: how much faster are two on two cores, and where does the pipeline end?

    python -m benchmarks.scale [--workers 1 2 4 8 16] [--wait-ms 400] [--seconds 15] [--laps 3]

First a body that computes, with one worker and with two by turns: the second joins and leaves between the
laps. Then a body that only waits (`time.sleep`, which needs no core, in the worker's torch thread) for so
many milliseconds a step, half of them forwards, with ever more workers and three devices for each: the share
of the time in which the bodies wait is what the pipeline leaves of it, and the processor time of a step says
where it ends. Devices are named such that shards have equally many sessions: by chance some have more.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count

from redis import Redis

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Contestant, Field, Services, services
from benchmarks.harness.submission import submit
from benchmarks.harness.timed_runs import cpu_seconds, resident_bytes
from benchmarks.harness.workloads import CROWD, HEAVY
from broker.transport.topology import DEFAULT_SHARDS, shard_of
from server_worker.store import open_store

WORKERS = (1, 2, 4, 8, 16)
WAIT_MS = 400.0
SECONDS, LAPS = 15.0, 3
EACH = 3
"""Devices for each worker: enough that it has always one to serve."""
TWO_GOAL, WAIT_GOAL = 1.8, 0.9
SHARED_S = 40.0
SETTLE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The figures of so many workers in `seconds`."""

    body: str
    workers: int
    sessions: int
    wait_s: float
    """The body waits this long in each step; 0: it computes."""
    seconds: float
    steps: float
    """That devices took or, of a body that waits, that the workers waited for."""
    shared: bool
    """Every worker had its share of the sessions."""
    cpu_ms: dict[str, float]
    """Processor time of a step, by who spent it."""
    worker_bytes: int
    """Resident memory of a worker, on average."""
    redis_bytes: int
    """That Redis holds of a session, on average."""

    @property
    def rate(self) -> float:
        return self.steps / self.seconds

    @property
    def efficiency(self) -> float:
        """The efficiency of a body that waits: 1 where all workers wait all the time."""
        return self.rate * self.wait_s / self.workers


class Run:
    """A job that many devices train, and the workers that serve it now."""

    def __init__(self, field: Field, body: str, *, devices: int, wait_ms: float) -> None:
        self.field, self.services, self.body, self.wait_ms = field, field.services, body, wait_ms
        self.workers: list[Contestant] = []
        self.devices: list[Contestant] = []
        self.names: list[str] = []
        workload = CROWD if wait_ms else HEAVY
        submit(workload.job(body), self.services.store)
        self._redis = Redis.from_url(self.services.store)
        self._before = self._used()
        self.start_worker()
        self.start_devices(devices)

    def start_worker(self) -> None:
        arguments = ["worker", self.services.broker, self.services.store, str(self.wait_ms)]
        self.workers.append(self.field.enter("worker", ["-m", "benchmarks.harness.load", *arguments], {}))

    def start_devices(self, wanted: int) -> None:
        """Start devices until there are `wanted`."""
        names = evenly(self.body, wanted)[len(self.names) :]
        state = str(self.services.folder / self.body)
        arguments = ["devices", self.body, self.services.broker, state, ",".join(names), "data_w0"]
        self.devices.append(self.field.enter("devices", ["-m", "benchmarks.harness.load", *arguments], {}))
        self.names += names

    def stop_worker(self) -> None:
        """It drains first."""
        leaving = self.workers.pop().device
        leaving.terminate()
        leaving.wait(60)

    def measure(self, seconds: float) -> Figure:
        """Count steps once each worker has its share."""
        shared = asyncio.run(until_shared(self.services.store, len(self.workers), len(self.names)))
        time.sleep(SETTLE_S)
        before, began = self._cpu(), time.perf_counter()
        steps: float = 0
        if self.wait_ms:
            waited = -self._waited()
            time.sleep(seconds)
            steps = (waited + self._waited()) / self.wait_ms * 1000
        else:
            steps = sum(self.devices[0].ask(str(seconds))["steps"])
        elapsed, after = time.perf_counter() - began, self._cpu()
        return Figure(
            body=self.body,
            workers=len(self.workers),
            sessions=len(self.names),
            wait_s=self.wait_ms / 1000,
            seconds=elapsed,
            steps=steps,
            shared=shared,
            cpu_ms={who: (after[who] - before[who]) / max(1.0, steps) * 1000 for who in after},
            worker_bytes=round(statistics.mean(resident_bytes(each.device.pid) for each in self.workers)),
            redis_bytes=(self._used() - self._before) // len(self.names),
        )

    def _waited(self) -> float:
        """Seconds that all workers have waited so far."""
        return sum(each.ask("0")["waited_s"] for each in self.workers)

    def _used(self) -> int:
        return int(self._redis.info("memory")["used_memory"])

    def _cpu(self) -> dict[str, float]:
        return {
            "devices": sum(cpu_seconds(each.device.pid) for each in self.devices),
            "workers": sum(cpu_seconds(each.device.pid) for each in self.workers),
            **{who: cpu_seconds(pid) for who, pid in self.services.pids().items()},
        }


def evenly(job: str, devices: int) -> list[str]:
    """Names of devices: each 16 in a row are of different shards."""
    names: list[str] = []
    free: set[int] = set()
    for number in count(1):
        if len(names) == devices:
            break
        free = free or set(range(DEFAULT_SHARDS))
        shard = shard_of(f"{job}.phone-{number}", DEFAULT_SHARDS)
        if shard in free:
            free.remove(shard)
            names.append(f"phone-{number}")
    return names


async def until_shared(url: str, workers: int, sessions: int) -> bool:
    """Wait until each worker has as many sessions as the others; False where that took too long."""
    store = await open_store(url)
    try:
        async with asyncio.timeout(SHARED_S):
            while True:
                have = [info.sessions for info in await store.workers() if info.state == "serving"]
                if len(have) == workers and sum(have) == sessions and max(have) - min(have) <= 1:
                    return True
                await asyncio.sleep(0.2)
    except TimeoutError:
        return False
    finally:
        await store.close()


def computing(running: Services, seconds: float, laps: int) -> list[Figure]:
    """One worker and two, by turns."""
    figures = []
    with Field(running) as field:
        run = Run(field, "heavy", devices=2 * EACH, wait_ms=0)
        for _ in range(laps):
            figures.append(run.measure(seconds))
            run.start_worker()
            figures.append(run.measure(seconds))
            run.stop_worker()
            print(".", end="", file=sys.stderr, flush=True)
    return figures


def waiting(running: Services, workers: Sequence[int], seconds: float, wait_ms: float) -> list[Figure]:
    """Ever more workers, whose bodies wait."""
    figures = []
    with Field(running) as field:
        run = Run(field, "waits", devices=EACH * min(workers), wait_ms=wait_ms)
        for wanted in sorted(workers):
            while len(run.workers) < wanted:
                run.start_worker()
            if len(run.names) < EACH * wanted:
                run.start_devices(EACH * wanted)
            figures.append(run.measure(seconds))
            print(".", end="", file=sys.stderr, flush=True)
    return figures


def speedup(figures: Sequence[Figure]) -> float:
    """The median of two workers over that of one."""
    one, two = (statistics.median(each.rate for each in figures if each.workers == n) for n in (1, 2))
    return two / one


def tables_of(computed: Sequence[Figure], waited: Sequence[Figure]) -> list[Table]:
    rows = []
    for workers in (1, 2):
        rates = [each.rate for each in computed if each.workers == workers]
        ratio = speedup(computed) if workers == 2 else 1.0
        met = goal(f"≥ {TWO_GOAL}", ratio >= TWO_GOAL) if workers == 2 else ""
        laps = ", ".join(f"{rate:.1f}" for rate in rates)
        rows.append([str(workers), f"{statistics.median(rates):.1f}", laps, f"{ratio:.2f}", met])
    head = ["workers", "steps a second", "of each lap", "over one", "goal"]
    tables = [Table("A body that computes, on two cores", head, rows)] if computed else []
    if not waited:
        return tables
    last = max(each.workers for each in waited)
    rows = [
        [
            str(one.workers),
            f"{one.rate:.1f}",
            f"{one.workers / one.wait_s:.1f}",
            f"{one.efficiency:.2f}",
            *(f"{one.cpu_ms[who]:.1f}" for who in ("devices", "broker", "store", "workers")),
            "" if one.shared else "not all had their share",
            goal(f"≥ {WAIT_GOAL}", one.efficiency >= WAIT_GOAL) if one.workers == last else "",
        ]
        for one in waited
    ]
    head = ["workers", "steps a second", "at most", "efficiency"]
    head += ["devices: CPU ms a step", "broker", "store", "workers", "remark", "goal"]
    title = f"A body that waits {waited[0].wait_s * 1000:.0f} ms, {EACH} devices for each worker"
    tables.append(Table(title, head, rows))
    rows = [
        [
            each.body,
            str(each.workers),
            f"{each.sessions / each.workers:g}",
            f"{each.worker_bytes / 1e6:.0f}",
            f"{each.redis_bytes / 1e3:.0f}",
            f"{each.cpu_ms['broker']:.1f}",
            f"{each.cpu_ms['store']:.1f}",
        ]
        for each in (*computed[-2:], *waited)
    ]
    head = ["body", "workers", "sessions each", "MB a worker", "kB a session in Redis"]
    tables.append(Table("For sizing", [*head, "broker: CPU ms a step", "store"], rows))
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--workers", nargs="+", type=int, default=WORKERS, help="that wait")
    parser.add_argument("--wait-ms", type=float, default=WAIT_MS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a lap")
    parser.add_argument("--laps", type=int, default=LAPS, help="with one and two workers; 0: none of it")
    options = parser.parse_args()
    began = show_about()
    computed: list[Figure] = []
    if options.laps:
        with services() as running:
            computed = computing(running, options.seconds, options.laps)
    with services() as running:
        waited = waiting(running, options.workers, options.seconds, options.wait_ms)
    print(file=sys.stderr)
    tables = tables_of(computed, waited)
    for table in tables:
        table.show()
    told = [{**asdict(one), "rate": one.rate, "efficiency": one.efficiency} for one in (*computed, *waited)]
    save("scale", told, tables, began)


if __name__ == "__main__":
    main()
