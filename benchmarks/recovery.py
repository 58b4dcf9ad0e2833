"""The time until training moves again after a fault: seconds to each session's next step.

    python -m benchmarks.recovery [--faults killed paused …] [--times 20] [--sessions 4]

Two workers as processes, RabbitMQ and Redis as they are used, devices in this process; one fault at a time,
and the next one when all has come to rest. Goals: a killed worker's sessions move within 1 s at p95, where
the other worker has the program; a paused worker's within `--takeover-s`, 5 s by default.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import torch

from benchmarks.harness.cluster import Arena, WorkerPlace
from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import services
from spliteasy.observability import logs
from spliteasy.runtime.event_loop import new_runner

GOALS = {"worker killed": 1.0, "worker paused": 2 * 2 + 1.0}
"""Seconds, at p95."""

Fault = Callable[[Arena, WorkerPlace], Awaitable[list[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One kind of fault: seconds to the next step of each session that it hit."""

    fault: str
    times: int
    seconds: list[float]
    replayed: int

    def percentile(self, share: float) -> float:
        """The smallest value that at least that share of all is not above."""
        ordered = sorted(self.seconds)
        return ordered[max(0, -(-round(share * 100) * len(ordered) // 100) - 1)]


async def killed(arena: Arena, place: WorkerPlace) -> list[float]:
    arena.strike(arena.sessions_of(place))
    await arena.kill(place)
    seconds = await arena.moved()
    await arena.start(place)
    return seconds


async def paused(arena: Arena, place: WorkerPlace) -> list[float]:
    """Pause a worker, and resume it when others have its sessions."""
    arena.strike(arena.sessions_of(place))
    place.signal(signal.SIGSTOP)
    seconds = await arena.moved()
    place.signal(signal.SIGCONT)
    return seconds


async def drained(arena: Arena, place: WorkerPlace) -> list[float]:
    arena.strike(arena.sessions_of(place))
    place.signal(signal.SIGTERM)
    seconds = await arena.moved()
    assert place.process is not None
    await place.process.wait()
    await arena.start(place)
    return seconds


async def worker_cut(arena: Arena, place: WorkerPlace) -> list[float]:
    arena.strike(arena.sessions_of(place))
    place.link.cut()
    return await arena.moved()


async def device_cut(arena: Arena, place: WorkerPlace) -> list[float]:
    """All devices at once: they share the link."""
    arena.strike(list(arena.owner))
    arena.device_link.cut()
    return await arena.moved()


async def rabbitmq_restarted(arena: Arena, place: WorkerPlace) -> list[float]:
    """Restart RabbitMQ, and measure from when it serves again."""
    rabbitmq = arena.services.rabbitmq
    await asyncio.to_thread(rabbitmq.sync_queues)
    await asyncio.to_thread(rabbitmq.kill)
    await asyncio.to_thread(rabbitmq.start)
    arena.strike(list(arena.owner))
    return await arena.moved()


async def redis_restarted(arena: Arena, place: WorkerPlace) -> list[float]:
    """Restart Redis, and measure from when it serves again."""
    redis = arena.services.redis
    await asyncio.to_thread(redis.kill)
    await asyncio.to_thread(redis.start)
    arena.strike(list(arena.owner))
    return await arena.moved()


FAULTS: dict[str, tuple[str, Fault]] = {
    "killed": ("worker killed", killed),
    "paused": ("worker paused", paused),
    "drained": ("worker drained", drained),
    "worker-cut": ("worker's link cut", worker_cut),
    "device-cut": ("devices' link cut", device_cut),
    "rabbitmq": ("RabbitMQ restarted", rabbitmq_restarted),
    "redis": ("Redis restarted", redis_restarted),
}


async def measure(arena: Arena, name: str, times: int, rng: random.Random) -> Figure:
    """The fault so often, on the two workers by turns."""
    title, strike = FAULTS[name]
    seconds: list[float] = []
    replayed = 0
    for number in range(times):
        await arena.settled()
        await asyncio.sleep(rng.uniform(0.0, 0.3))  # at any point of a step
        before = arena.replayed
        took = await strike(arena, arena.workers[number % 2])
        print(f"{title}: {' '.join(f'{one:.2f}' for one in took)}", file=sys.stderr, flush=True)
        seconds += took
        replayed += arena.replayed - before
    return Figure(fault=title, times=times, seconds=seconds, replayed=replayed)


def table_of(figures: list[Figure]) -> Table:
    rows = []
    for one in figures:
        limit, p95 = GOALS.get(one.fault), one.percentile(0.95)
        rows.append(
            [
                one.fault,
                str(one.times),
                str(len(one.seconds)),
                *(f"{one.percentile(share):.2f}" for share in (0.5, 0.95, 1.0)),
                str(one.replayed),
                "" if limit is None else goal(f"p95 ≤ {limit:g} s", p95 <= limit),
            ]
        )
    head = ["fault", "times", "sessions hit", "p50 s", "p95 s", "max s", "steps replayed", "goal"]
    return Table("Seconds until the next step", head, rows)


async def run(names: list[str], times: int, sessions: int, seed: int) -> list[Figure]:
    rng = random.Random(seed)
    with services() as running:
        async with Arena(running, sessions=sessions) as arena:
            return [await measure(arena, name, times, rng) for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recovery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--times", type=int, default=20, help="of each kind (default 20)")
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logs.configure("error")
    began = show_about()
    with new_runner() as runner:
        figures = runner.run(run(options.faults, options.times, options.sessions, options.seed))
    table = table_of(figures)
    table.show()
    save("recovery", [asdict(one) for one in figures], [table], began)


if __name__ == "__main__":
    main()
