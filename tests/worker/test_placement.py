"""Work spreads over the workers: a worker with more than its share hands shards on, and nothing is lost."""

from __future__ import annotations

import pytest

from server_worker.placement import shard_to_yield
from server_worker.store import WorkerInfo
from tests.simulation import toy
from tests.simulation.clock import run_virtually
from tests.simulation.faults import CALM
from tests.simulation.world import World


def info(worker: str, sessions: int, state: str = "serving") -> WorkerInfo:
    return WorkerInfo(
        worker=worker, started_at=0.0, sessions=sessions, shards=(), steps=0, host="h", pid=1, state=state
    )


@pytest.mark.parametrize(
    ("load", "others", "expected"),
    [
        ({1: 1, 2: 1}, [], None),  # nobody to give to
        ({1: 1}, [info("b", 0)], None),  # moving it would only swap the two
        ({1: 1, 2: 1}, [info("b", 0)], 1),
        ({1: 1, 2: 1}, [info("b", 1)], None),
        ({1: 3, 2: 1}, [info("b", 0)], 1),
        ({1: 5, 2: 1}, [info("b", 0)], 1),
        ({1: 6}, [info("b", 0)], None),  # one shard that is all the load can't be divided
        ({1: 2, 2: 2}, [info("b", 0, "draining")], None),
        ({1: 2, 2: 2}, [info("b", 4), info("c", 0)], 1),
    ],
)
def test_a_shard_is_handed_on_only_where_that_evens_the_load(
    load: dict[int, int], others: list[WorkerInfo], expected: int | None
) -> None:
    workers = [info("a", sum(load.values())), *others]
    assert shard_to_yield("a", load, workers) == expected


def test_two_workers_share_four_devices() -> None:
    """Whoever came first has every shard; the other has its share soon, and the weights are the same."""
    devices = ("phone-1", "phone-2", "phone-3", "phone-4")
    world = World(seed=1, variant=toy.Variant(epochs=10), devices=devices, rates=CALM)
    assert run_virtually(world.run()).violations == []
    total = sum(world.steps_by_worker.values())
    assert total == 4 * 40
    assert min(world.steps_by_worker[0], world.steps_by_worker[1]) > total / 4
