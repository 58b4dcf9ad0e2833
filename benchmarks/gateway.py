"""The cost of pages that wait at a gateway: `python -m benchmarks.gateway [--pages 1000]`.

A gateway and a RabbitMQ, and so many devices with accounts of their own, connected as pages are and reading
their reply queues. Memory is that of the gateway's process and of the broker's, before and after, a page.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Field, Services, free_port, services
from benchmarks.harness.timed_runs import cpu_seconds, resident_bytes
from broker import Transport, connect
from broker.transport.topology import reply_slot
from deploy.accounts import Accounts, Role
from deploy.nodes.native import HOST

GOAL_KB, GOAL_CPU = 200, 25.0
"""The gateway's memory for each idle page, and percent of one core for a thousand of them."""
AT_ONCE = 16
"""Pages that connect at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The cost of so many idle pages."""

    pages: int
    connect_s: float
    gateway_bytes: int
    """Memory of the gateway's process, above what it had without pages."""
    broker_bytes: int
    gateway_cpu: float
    """Processor seconds a second, while nothing happens."""


async def _connect_page(port: int, name: str, password: str, turn: asyncio.Semaphore) -> Transport:
    async with turn:
        transport = await connect(f"ws://{name}:{password}@{HOST}:{port}")
        queue = reply_slot(name, 0)
        await transport.declare(queue)
        await transport.subscribe(queue.name, prefetch=16, exclusive=True)
        return transport


async def _measure(running: Services, gateway: int, port: int, pages: int, seconds: float) -> Figure:
    accounts = Accounts(f"http://{running.rabbitmq.user}:{running.rabbitmq.password}@{HOST}:"
                        f"{running.rabbitmq.management_port}")  # fmt: skip
    password = secrets.token_hex(16)
    names = [f"page-{number}" for number in range(pages)]
    for name in names:
        await asyncio.to_thread(accounts.enroll, name, Role.DEVICE, password)
    broker = running.pids()["broker"]
    before = resident_bytes(gateway), resident_bytes(broker)
    turn, began = asyncio.Semaphore(AT_ONCE), time.monotonic()
    async with AsyncExitStack() as stack:
        for transport in await asyncio.gather(*(_connect_page(port, name, password, turn) for name in names)):
            stack.push_async_callback(transport.close)
        connect_s = time.monotonic() - began
        cpu, began = cpu_seconds(gateway), time.monotonic()
        await asyncio.sleep(seconds)
        gateway_cpu = (cpu_seconds(gateway) - cpu) / (time.monotonic() - began)
        return Figure(
            pages=pages,
            connect_s=connect_s,
            gateway_bytes=resident_bytes(gateway) - before[0],
            broker_bytes=resident_bytes(broker) - before[1],
            gateway_cpu=gateway_cpu,
        )


def measure(running: Services, pages: int, seconds: float) -> Figure:
    """A gateway as its own process, and the pages in this one."""
    port = free_port()
    words = ["-m", "spliteasy_cli", "--log-level", "warning", "gateway", "--broker", running.broker]
    words += ["--listen", f"{HOST}:{port}"]
    for option in ("--connections", "--per-address"):
        words += [option, str(pages + 10)]
    with Field(running) as field:
        gateway = field.spawn(*words, piped=True)
        while "gateway at " not in gateway.stdout.readline():
            if gateway.poll() is not None:
                raise RuntimeError("the gateway ended")
        return asyncio.run(_measure(running, gateway.pid, port, pages, seconds))


def table_of(figures: Sequence[Figure]) -> Table:
    rows = [
        [
            f"{one.pages:,}",
            f"{one.connect_s:.1f}",
            f"{one.gateway_bytes / one.pages / 1e3:.0f}",
            f"{one.broker_bytes / one.pages / 1e3:.0f}",
            f"{100 * one.gateway_cpu:.1f}",
            goal(
                f"≤ {GOAL_KB} kB, ≤ {GOAL_CPU:g} %",
                one.gateway_bytes / one.pages <= GOAL_KB * 1e3 and 100 * one.gateway_cpu <= GOAL_CPU,
            ),
        ]
        for one in figures
    ]
    heads = ["pages", "s to connect all", "kB a page, gateway", "kB a page, RabbitMQ", "% of a core", "goal"]
    return Table("Idle pages on one gateway", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0, help="to watch them")
    options = parser.parse_args()
    began = show_about()
    with services(management=True) as running:
        figures = [measure(running, options.pages, options.seconds)]
    table = table_of(figures)
    table.show()
    save("gateway", [asdict(one) for one in figures], [table], began)


if __name__ == "__main__":
    main()
