"""The cost of durability: step time with the session in Redis over the same with it in memory only.

    python -m benchmarks.durability [--workloads W0 W2] [--rounds 9]

One device and one worker for each store, all beside each other; they take laps in turn, and each round
compares them under the same conditions. A lap holds a snapshot or more. In memory: SQLite without a file,
which keeps nothing and waits for no disk. The goal: 1.10 or less with Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Field, Services, free_port, services
from benchmarks.harness.submission import submit
from benchmarks.harness.workloads import WORKLOADS, Workload
from broker import connect
from deploy.nodes.redis_server import RedisServer
from server_worker.config import Trust, WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.store import SqliteStore
from server_worker.store.redis.link import connect as connect_redis
from server_worker.worker import Worker
from spliteasy.job import Job
from spliteasy.job.file import parse_job
from spliteasy.runtime.event_loop import new_runner
from spliteasy.runtime.torch_thread import TorchThread
from spliteasy_cli.commands.submit import store_job

MEMORY, EVERYSEC, ALWAYS = "memory only", "Redis, everysec", "Redis, always"
STORES = (MEMORY, EVERYSEC, ALWAYS)
GOAL = 1.10
STEPS = {"W0": 40, "W1": 2, "W2": 5}
"""Steps of a lap."""
SNAPSHOT_EVERY = {"W0": 20, "W1": 2}
"""Steps between snapshots: one or two a lap, where the default of 50 would miss most laps. W2's steps are so
large that its log is cut, by a snapshot, every step or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One store on one workload; medians over rounds, `ratio` of each round's own comparison."""

    workload: str
    store: str
    step_s: float
    ratio: float
    worker_cpu_s: float
    store_cpu_s: float | None
    """Processor seconds of Redis a step; None: not in Redis."""
    stored_bytes: int | None
    """The bytes that Redis holds of the session after the last lap, by MEMORY USAGE; None: not in Redis."""
    rounds: int


def run(workload: Workload, rounds: int) -> list[Figure]:
    """Race the stores."""
    with services() as running, ExitStack() as stack, Field(running) as field:
        always = RedisServer(folder=running.folder / "always", port=free_port(), appendfsync="always")
        stack.callback(always.stop)
        always.start()
        urls = {MEMORY: None, EVERYSEC: running.store, ALWAYS: always.url}
        pids = {EVERYSEC: running.redis.pid, ALWAYS: always.pid}
        for place, name in enumerate(STORES):
            vhost = f"durability-{place}"
            _enter(field, running, workload, name, urls[name], vhost=vhost, store=pids.get(name))
        for _ in range(rounds + 1):
            for contestant in field.contestants:
                contestant.lap(STEPS[workload.name])
            print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        stored = {name: asyncio.run(stored_bytes(url)) if url else None for name, url in urls.items()}
        laps = {one.name: [statistics.median(lap) for lap in one.seconds[1:]] for one in field.contestants}
        return [
            Figure(
                workload=workload.name,
                store=one.name,
                step_s=statistics.median(laps[one.name]),
                ratio=statistics.median(a / b for a, b in zip(laps[one.name], laps[MEMORY], strict=True)),
                worker_cpu_s=statistics.median(lap["worker"] for lap in one.cpu[1:]),
                store_cpu_s=statistics.mean(lap["store"] for lap in one.cpu[1:])
                if "store" in one.cpu[0]
                else None,
                stored_bytes=stored[one.name],
                rounds=rounds,
            )
            for one in field.contestants
        ]


def _enter(
    field: Field,
    running: Services,
    workload: Workload,
    name: str,
    url: str | None,
    *,
    vhost: str,
    store: int | None,
) -> None:
    """Run a worker with that store and a device, in a virtual host of their own."""
    running.rabbitmq.ctl("add_vhost", vhost)
    running.rabbitmq.ctl("set_permissions", "-p", vhost, running.rabbitmq.user, ".*", ".*", ".*")
    broker = running.rabbitmq.url(vhost)
    if url is None:
        worker = field.spawn("-m", "benchmarks.durability", "--serve-memory", workload.name, broker)
    else:
        submit(job_of(workload), url)
        arguments = ("worker", "--trust", "open", "--broker", broker, "--store", url)
        worker = field.spawn("-m", "spliteasy_cli", *arguments)
    device = ("-m", "benchmarks.harness.agent_runner", workload.name, job_of(workload)["name"], broker)
    others = {"worker": worker.pid} if store is None else {"worker": worker.pid, "store": store}
    field.enter(name, [*device, str(running.folder / vhost)], others)


def job_of(workload: Workload) -> dict[str, Any]:
    """Return the job file's content."""
    every = SNAPSHOT_EVERY.get(workload.name)
    settings = {} if every is None else {"snapshot_every_steps": every, "checkpoint_every": every}
    return {**workload.job(f"durability-{workload.name.lower()}"), "durability": settings}


async def stored_bytes(url: str) -> int:
    """Return the bytes that Redis holds of all sessions: records, requests, snapshots and its overhead."""
    link = await connect_redis(url)
    try:
        total = 0
        for kind in ("record", "request:*", "snapshot:*"):
            for key in await link.call("KEYS", "spliteasy:{*}:" + kind):
                total += await link.call("MEMORY", "USAGE", key) or 0
        return total
    finally:
        await link.close()


async def serve_memory(workload: Workload, broker: str) -> None:
    """A worker whose store is in its own memory."""
    job = Job.create(parse_job(job_of(workload)), None)
    store, compute = SqliteStore(None), TorchThread()
    await store_job(store, job)
    config = WorkerConfig(trust=Trust.OPEN)
    await Worker(config, connect=lambda: connect(broker), store=store, engine=LocalEngine(compute)).run(
        asyncio.Event()
    )


def table_of(figures: Sequence[Figure]) -> Table:
    """One workload's stores."""
    rows = [
        [
            one.store,
            f"{one.step_s * 1000:.1f}",
            f"{one.ratio:.3f}",
            f"{one.worker_cpu_s * 1000:.1f}",
            "" if one.store_cpu_s is None else f"{one.store_cpu_s * 1000:.1f}",
            "" if one.stored_bytes is None else f"{one.stored_bytes:,}",
            "" if one.store == MEMORY else goal(f"≤ {GOAL:.2f}", one.ratio <= GOAL),
        ]
        for one in figures
    ]
    head = ["store", "ms a step", "× memory only", "worker's CPU ms a step", "Redis's CPU ms a step"]
    head += ["bytes in Redis", "goal"]
    return Table(f"{figures[0].workload}: what durability costs", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durability", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--serve-memory", nargs=2, metavar=("WORKLOAD", "BROKER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_memory:
        torch.set_num_threads(1)
        name, broker = options.serve_memory
        with new_runner() as runner:
            runner.run(serve_memory(WORKLOADS[name], broker))
        return
    began = show_about()
    figures, tables = [], []
    for name in options.workloads:
        found = run(WORKLOADS[name], options.rounds)
        tables.append(table_of(found))
        tables[-1].show()
        figures += found
    save("durability", [asdict(one) for one in figures], tables, began)


if __name__ == "__main__":
    main()
