"""The size of stacks: phones that they carry, the part that breaks first, the price of a step.

    python -m benchmarks.capacity [--devices 1 4 16 32 64] [--seconds 10] [--phones 1000 100000 10000000]

First real runs on this machine: what a step costs each part (from the run of `CALIBRATED` devices), and what
a connection costs the broker. Then a model in virtual time (`benchmarks.harness.capacity_model`) is held to
all of the runs, with the same two cores for all parts, and goes on from there to stacks that nobody has here.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from benchmarks.emulator import PROFILES
from benchmarks.harness.capacity_model import Costs, Layout, Link, Outcome, Pipeline, Storm
from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Services, services
from benchmarks.harness.timed_runs import cpu_seconds, resident_bytes
from benchmarks.harness.workloads import CROWD, W1, Workload
from benchmarks.many import LINK, Figure, measure
from broker import connect
from broker.transport.topology import reply_slot

DEVICES = (1, 4, 16, 32, 64)
SECONDS = 10.0
CALIBRATED = 16
"""The run that the costs are taken from."""
TOLERANCE = 0.15
WITHIN = f"within {TOLERANCE:.0%}"
PHONES = (1_000, 100_000, 10_000_000)
CONNECTIONS = 200
VIRTUAL_S = 20.0

# What the plan for a country assumes. Each is an argument of a thought, not a measurement.
STEPS_A_DAY = 400
"""Steps that a phone trains in a day: an epoch of 12,000 samples in batches of 30."""
HOURS = 8.0
"""The hours of a night in which phones train: charging, on a Wi-Fi."""
PEAK = 2.0
"""The busiest moment of those hours over their mean."""
PHONE = 5.0
"""The time that a phone needs for its part of a step, over this machine's."""
ROOM = 0.6
"""The share of a station's time that a plan fills."""
BROKER_NODES, NODE_CORES = 3, 8
"""A cell's RabbitMQ cluster. Its quorum queues write on each node: a step costs each of them its part."""
DOLLARS_CORE_HOUR, DOLLARS_GB = 0.04, 0.09
"""Common list prices of large clouds: a virtual core with 4 GB for an hour, a gigabyte that leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The broker's costs of one connected device that waits."""

    bytes: int
    connect_s: float
    """Processor time to connect, declare the reply queue and consume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One broker cluster, one Redis and their workers, as full as `ROOM` allows."""

    steps_s: float
    devices: int
    """Devices that train at once."""
    workers: int
    outcome: Outcome


def costs_of(figure: Figure, workload: Workload) -> Costs:
    """Return what a step cost each part in a run.

    The body's is by the clock: its thread waits for the interpreter, which the worker's event loop uses too.
    """
    steps = sum(figure.steps)
    spent = {who: seconds / steps for who, seconds in figure.cpu_s.items()}
    up, down = crossing_bytes(workload)
    return Costs(
        device_s=spent["devices"],
        broker_s=spent["broker"],
        store_s=spent["store"],
        worker_s=spent["worker"] - figure.processor_s / steps,
        body_s=figure.computing_s / steps,
        link_s=spent["link"],
        bytes_up=up,
        bytes_down=down,
    )


def crossing_bytes(workload: Workload) -> tuple[int, int]:
    """Bytes of a step up and down: the values at both cuts, and their gradients."""
    both = sum(4 * math.prod(shape) for shape in workload.sizes())
    return both, both


def link_of(name: str) -> Link:
    profile = PROFILES[name]
    return Link(latency_s=profile.latency_s, up_bytes_s=profile.up_bytes_s, down_bytes_s=profile.down_bytes_s)


def on_this_machine(costs: Costs, devices: int, *, cores: int = 2, seconds: float = VIRTUAL_S) -> Outcome:
    """The model of a run of `benchmarks.many`: all parts on the same cores."""
    layout = Layout(devices=devices, cores=cores, devices_share=cores)
    return Pipeline(costs, link_of(LINK), layout).run(seconds)


def cell_of(costs: Costs, link: Link, *, seconds: float = VIRTUAL_S) -> Cell:
    """Fill one cell: as many workers and devices as its broker and its store carry.

    The broker's nodes each do a step's whole work, as with quorum queues on all of them.
    """
    carried = min(NODE_CORES / costs.broker_s, 1 / costs.store_s) * ROOM
    workers = math.ceil(carried * (costs.worker_s + costs.body_s) / ROOM)
    own = replace(costs, link_s=0.0, device_s=PHONE * costs.device_s)
    alone = Pipeline(own, link, Layout(devices=1, broker_cores=NODE_CORES)).run(seconds).step_s
    devices = max(1, round(carried * alone))
    layout = Layout(devices=devices, workers=workers, broker_cores=NODE_CORES)
    outcome = Pipeline(own, link, layout).run(max(seconds, 5 * alone))
    return Cell(steps_s=outcome.steps_s, devices=devices, workers=workers, outcome=outcome)


def cells_for(phones: int, cell: Cell) -> int:
    """Cells for so many phones at the busiest moment of a night."""
    wanted = phones * STEPS_A_DAY / (HOURS * 3600) * PEAK
    return max(1, math.ceil(wanted / cell.steps_s))


def dollars_per_million(costs: Costs, cell: Cell) -> tuple[float, float]:
    """Price of a million steps: (cores of a cell that is used as planned, traffic to the phones)."""
    cores = cell.workers + BROKER_NODES * NODE_CORES + 2  # Redis with its replica
    hours = 1e6 / cell.steps_s / 3600
    return cores * hours * DOLLARS_CORE_HOUR, costs.bytes_down * 1e6 / 1e9 * DOLLARS_GB


async def connect_many(running: Services, count: int) -> Connection:
    """Connect, declare and consume as agents do, and look at the broker before and after."""
    pid = running.pids()["broker"]
    memory, processor = resident_bytes(pid), cpu_seconds(pid)
    transports = []
    for number in range(count):
        transport = await connect(running.broker)
        queue = reply_slot(f"idle-{number}", 0)
        await transport.declare(queue)
        await transport.subscribe(queue.name, prefetch=1, exclusive=True)
        transports.append(transport)
    await asyncio.sleep(1.0)
    spent = Connection(
        bytes=max(0, resident_bytes(pid) - memory) // count, connect_s=(cpu_seconds(pid) - processor) / count
    )
    for transport in transports:
        await transport.close()
    return spent


def checked(figures: Sequence[Figure], costs: Costs) -> tuple[Table, list[float]]:
    """The model beside the runs; also the ratios."""
    rows, ratios = [], []
    for one in figures:
        measured = sum(one.steps) / one.seconds
        model = on_this_machine(costs, one.devices).steps_s
        ratios.append(model / measured)
        met = "the costs are from here"
        if one.devices != CALIBRATED:
            met = goal(WITHIN, abs(ratios[-1] - 1) <= TOLERANCE)
        rows.append([str(one.devices), f"{measured:.1f}", f"{model:.1f}", f"{ratios[-1]:.2f}", met])
    head = ["devices", "steps a second", "the model's", "ratio", "goal"]
    return Table("The model against real runs, 100 ms round trip", head, rows), ratios


def costs_table(costs: dict[str, Costs], connection: Connection) -> Table:
    rows = [
        [
            name,
            *(
                f"{seconds * 1000:.1f}"
                for seconds in (each.device_s, each.broker_s, each.store_s, each.worker_s, each.body_s)
            ),
            f"{each.bytes_up / 1e3:.0f}",
        ]
        for name, each in costs.items()
    ]
    idle = f"{connection.bytes / 1e3:.0f} kB and {connection.connect_s * 1000:.1f} ms a connected device"
    rows.append(["waiting", "", idle, "", "", "", ""])
    head = ["workload", "devices: CPU ms a step", "broker", "store", "worker's messages", "body", "kB up"]
    return Table("What a step costs", head, rows)


def cells_table(costs: dict[str, Costs], cells: dict[str, Cell]) -> Table:
    rows = []
    for name, cell in cells.items():
        cores, traffic = dollars_per_million(costs[name], cell)
        used = cell.outcome.used
        rows.append(
            [
                name,
                f"{cell.devices:,}",
                f"{cell.workers}",
                f"{cell.steps_s:.0f}",
                f"{cell.outcome.step_s:.2f} / {cell.outcome.slow_step_s:.2f}",
                *(f"{used[part]:.2f}" for part in ("broker", "store", "workers")),
                cell.outcome.fullest,
                f"{cores:.2f} + {traffic:.2f}",
            ]
        )
    head = ["workload", "train at once", "workers", "steps a second", "s a step: median / 95 %"]
    head += ["broker", "store", "workers' cores", "fullest", "$ a million steps: cores + traffic"]
    return Table("One cell, from the model: a share of 1 is a part that never rests", head, rows)


def phones_table(phones: Sequence[int], costs: dict[str, Costs], cells: dict[str, Cell]) -> Table:
    rows = []
    for name, cell in cells.items():
        cores, traffic = dollars_per_million(costs[name], cell)
        for count in phones:
            number = cells_for(count, cell)
            workers = math.ceil(number * cell.workers) if number > 1 else _workers_for(count, cell)
            day = count * STEPS_A_DAY / 1e6 * (cores + traffic)
            rows.append([name, f"{count:,}", f"{number:,}", f"{workers:,}", f"{number * 3:,}", f"{day:,.2f}"])
    head = ["workload", "phones", "cells", "workers (cores)", "RabbitMQ nodes", "$ a day, as used"]
    title = f"{STEPS_A_DAY} steps a phone and day, within {HOURS:g} hours"
    return Table(title, head, rows)


def _workers_for(phones: int, cell: Cell) -> int:
    """The workers of a cell that is not full."""
    wanted = phones * STEPS_A_DAY / (HOURS * 3600) * PEAK
    return max(1, math.ceil(cell.workers * wanted / cell.steps_s))


def storm_table(connection: Connection, sizes: Sequence[int] = (1_000, 5_000, 20_000)) -> Table:
    rows = []
    for devices in sizes:
        seconds, given_up = Storm(
            devices=devices, connect_s=connection.connect_s, cores=BROKER_NODES * NODE_CORES
        ).run()
        rows.append(
            [
                f"{devices:,}",
                f"{seconds:.1f}",
                f"{given_up:,}",
                f"{devices * connection.bytes / 1e9:.2f}",
                goal("≤ 60 s", seconds <= 60),
            ]
        )
    head = ["connected devices", "s until 99 % are back", "attempts given up", "GB of the broker", "goal"]
    return Table("The storm after a broker was away for 10 s, from the model", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--devices", nargs="+", type=int, default=DEVICES)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each real run")
    parser.add_argument("--phones", nargs="+", type=int, default=PHONES)
    options = parser.parse_args()
    began = show_about()
    counts = sorted({*options.devices, CALIBRATED})
    with services() as running:
        connection = asyncio.run(connect_many(running, CONNECTIONS))
        figures = []
        for count in counts:
            figures.append(measure(running, count, options.seconds))
            print(".", end="", file=sys.stderr, flush=True)
        vision = measure(running, 2, 2 * options.seconds, workload=W1)
    print(file=sys.stderr)
    calibrated = figures[counts.index(CALIBRATED)]
    costs = {"small (crowd)": costs_of(calibrated, CROWD), "ResNet-18 (W1)": costs_of(vision, W1)}
    moment = time.monotonic()
    check, ratios = checked(figures, costs["small (crowd)"])
    cells = {name: cell_of(each, link_of("wifi")) for name, each in costs.items()}
    tables = [
        costs_table(costs, connection),
        check,
        cells_table(costs, cells),
        phones_table(options.phones, costs, cells),
        storm_table(connection),
    ]
    for table in tables:
        table.show()
    print(f"the model took {time.monotonic() - moment:.0f} s")
    told = {
        "costs": {name: asdict(each) for name, each in costs.items()},
        "connection": asdict(connection),
        "ratios": dict(zip(map(str, counts), ratios, strict=True)),
    }
    save("capacity", told, tables, began)


if __name__ == "__main__":
    main()
