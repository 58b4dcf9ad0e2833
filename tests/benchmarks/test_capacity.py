"""The model of large stacks: what it gives where the answer is known without it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.capacity import (
    ROOM,
    Cell,
    Connection,
    cell_of,
    cells_for,
    cells_table,
    costs_of,
    costs_table,
    link_of,
    phones_table,
    storm_table,
)
from benchmarks.harness.capacity_model import Costs, Layout, Link, Pipeline, Storm
from benchmarks.harness.workloads import CROWD
from benchmarks.many import Figure

COSTS = Costs(device_s=0.009, broker_s=0.004, store_s=0.001, worker_s=0.006, body_s=0.012)
LINK = Link(latency_s=0.05)


@pytest.fixture(scope="module")
def cell() -> Cell:
    return cell_of(COSTS, link_of("wifi"), seconds=2.0)


def test_a_device_alone_takes_the_sum_of_what_its_step_costs() -> None:
    outcome = Pipeline(COSTS, LINK, Layout(devices=1)).run(20.0)
    alone = COSTS.device_s + COSTS.server_s + 4 * LINK.latency_s + Pipeline.round_trip_s
    assert (outcome.step_s, outcome.slow_step_s) == (pytest.approx(alone), pytest.approx(alone))
    assert outcome.steps_s == pytest.approx(1 / alone, rel=0.02)


def test_bytes_take_the_time_of_their_link() -> None:
    costs, link = (
        replace(COSTS, bytes_up=20_000, bytes_down=10_000),
        replace(LINK, up_bytes_s=1e5, down_bytes_s=1e5),
    )
    slower = Pipeline(costs, link, Layout(devices=1)).run(20.0).step_s
    assert slower - Pipeline(COSTS, LINK, Layout(devices=1)).run(20.0).step_s == pytest.approx(0.3)


def test_a_worker_that_never_rests_is_the_bound() -> None:
    outcome = Pipeline(COSTS, LINK, Layout(devices=60)).run(10.0)
    assert outcome.steps_s == pytest.approx(1 / (COSTS.worker_s + COSTS.body_s), rel=0.05)
    assert outcome.fullest == "workers"
    assert outcome.used["workers"] == pytest.approx(1.0, abs=0.05)


def test_devices_are_as_many_as_their_steps_under_way() -> None:
    """Little's law: the number in a system is its throughput times the time within."""
    outcome = Pipeline(COSTS, LINK, Layout(devices=40, workers=2)).run(20.0)
    assert outcome.steps_s * outcome.step_s == pytest.approx(40, rel=0.05)


def test_parts_that_share_cores_are_slower_than_with_their_own() -> None:
    apart = Pipeline(COSTS, LINK, Layout(devices=60, workers=4)).run(5.0)
    together = Pipeline(COSTS, LINK, Layout(devices=60, workers=4, cores=2, devices_share=2)).run(5.0)
    assert together.steps_s < apart.steps_s
    assert together.steps_s <= 2 / (COSTS.device_s + COSTS.server_s) * 1.05


def test_a_cell_keeps_the_room_that_was_asked_for(cell: Cell) -> None:
    assert cell.steps_s <= ROOM / COSTS.store_s
    assert all(used < 0.8 for used in cell.outcome.used.values())
    assert cells_for(10_000_000, cell) > 10 * cells_for(100_000, cell) >= 10


def test_a_storm_that_the_broker_can_bear_is_over_soon() -> None:
    seconds, given_up = Storm(devices=500, connect_s=0.01, cores=4).run()
    assert given_up == 0
    assert 500 * 0.01 / 4 <= seconds < 60
    longer, given_up = Storm(devices=200, connect_s=2.0, cores=4).run()
    assert given_up > 0, "who waits longer than its patience begins again"
    assert longer > 0.98 * 200 * 2.0 / 4
    assert "NOT met" in storm_table(Connection(bytes=100_000, connect_s=15.0), sizes=[200]).markdown()


def test_the_tables_say_what_a_fleet_needs(cell: Cell) -> None:
    costs, waiting = {"small": COSTS}, Connection(bytes=190_000, connect_s=0.006)
    assert "190 kB and 6.0 ms a connected device" in costs_table(costs, waiting).markdown()
    table = cells_table(costs, {"small": cell})
    assert [len(row) for row in table.rows] == [len(table.head)]
    assert table.rows[0][2] == str(cell.workers)
    rows = phones_table((1_000, 10_000_000), costs, {"small": cell}).rows
    assert [row[2] for row in rows] == ["1", f"{cells_for(10_000_000, cell):,}"]


def test_costs_are_those_of_one_step() -> None:
    spent = {"devices": 1.0, "broker": 0.5, "store": 0.1, "worker": 2.0, "link": 0.2}
    figure = Figure(devices=2, seconds=10.0, steps=[60, 40], computing_s=1.6, processor_s=1.5, cpu_s=spent)
    costs = costs_of(figure, CROWD)
    assert (costs.device_s, costs.broker_s, costs.store_s) == (0.01, 0.005, 0.001)
    assert (costs.worker_s, costs.body_s) == (pytest.approx(0.005), 0.016)
    assert costs.bytes_up == costs.bytes_down == 61_440, "values at both cuts, or their gradients"
