"""Work spreads over the workers: a worker with more than its share hands shards on, and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

import pytest

from broker.transport.topology import DEFAULT_SHARDS, shard_of
from server_worker.placement.plan import plan_moves
from server_worker.store import WorkerInfo
from tests.simulation import toy
from tests.simulation.clock import run_virtually
from tests.simulation.faults import CALM
from tests.simulation.world import World


def info(worker: str, sessions: int, state: str = "serving", *, shards: tuple[int, ...] = ()) -> WorkerInfo:
    return WorkerInfo(
        worker=worker, started_at=0.0, sessions=sessions, shards=shards, steps=0, host="h", pid=1, state=state
    )


@pytest.mark.parametrize(
    ("load", "others", "give", "takers"),
    [
        ({1: 1, 2: 1}, [], (), ()),  # nobody to give to
        ({1: 1}, [info("b", 0)], (), ()),  # moving it would only swap the two
        ({1: 1, 2: 1}, [info("b", 0)], (1,), ("b",)),
        ({1: 1, 2: 1}, [info("b", 1)], (), ()),
        ({1: 3, 2: 1}, [info("b", 0)], (1,), ("b",)),
        ({1: 5, 2: 1}, [info("b", 0)], (1,), ("b",)),
        ({1: 6}, [info("b", 0)], (), ()),  # one shard that is all the load can't be divided
        ({1: 2, 2: 2}, [info("b", 0, "draining")], (), ()),
        ({1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1}, [info("b", 0)], (1, 2, 3), ("b",)),
        ({1: 1, 2: 1, 3: 1, 4: 1}, [info("b", 4), info("c", 4), info("d", 0)], (1,), ("d",)),
        ({1: 1}, [info("b", 5), info("c", 0)], (), ("a", "c")),  # others give, this one takes
        # two of b's are with c already, which b has not told yet
        ({1: 1, 2: 1, 3: 1}, [info("b", 4, shards=(4, 5, 6, 7)), info("c", 2, shards=(6, 7))], (), ()),
    ],
)
def test_shards_are_handed_on_only_where_that_evens_the_load(
    load: dict[int, int], others: list[WorkerInfo], give: tuple[int, ...], takers: tuple[str, ...]
) -> None:
    plan = plan_moves("a", load, [info("a", sum(load.values())), *others])
    assert (plan.give, plan.takers) == (give, takers)


def test_those_with_too_few_are_first_in_line_by_turns() -> None:
    plan = plan_moves("a", {}, [info("b", 9), info("c", 0)])
    assert [plan.next_in_line(shard) for shard in range(4)] == ["a", "c", "a", "c"]
    assert plan_moves("a", {}, []).next_in_line(3) is None


def one_a_shard(count: int) -> tuple[str, ...]:
    """Devices whose sessions lie in shards of their own."""
    found: dict[int, str] = {}
    for number in itertools.count(1):
        found.setdefault(shard_of(f"toy.phone-{number}", DEFAULT_SHARDS), f"phone-{number}")
        if len(found) == count:
            return tuple(found.values())
    raise AssertionError


@dataclass(kw_only=True)
class Joined(World):
    """Looks at who serves how many sessions, some seconds after workers have joined."""

    look_at_s: float
    loads: list[int] = field(default_factory=list)

    async def _weather(self) -> None:
        self._faults.active = False
        await asyncio.sleep(self.look_at_s)
        self.loads = sorted(len(worker.actors) for worker in self.alive.values())


@pytest.mark.parametrize(("late", "fair"), [((3,), 4), ((2, 3), 4)])
def test_a_worker_that_joins_has_its_fair_share_within_five_seconds(late: tuple[int, ...], fair: int) -> None:
    """Sixteen sessions, four workers in the end; one or two of them come when all is in balance."""
    joined_s = 10.0
    world = Joined(
        seed=1,
        variant=toy.Variant(epochs=30),
        devices=one_a_shard(16),
        workers=4,
        rates=CALM,
        late_s=dict.fromkeys(late, joined_s),
        look_at_s=joined_s + 5.0,
    )
    assert run_virtually(world.run()).violations == []
    assert world.loads == [fair] * 4


def test_with_more_shards_more_workers_find_work() -> None:
    """Forty sessions in shards of their own, and twenty workers: with sixteen shards four would have none."""
    loads: dict[str, dict[int, int]] = {f"w{number:02d}": {} for number in range(20)}
    loads["w00"] = dict.fromkeys(range(40), 1)
    for _ in range(10):
        told = [info(name, sum(load.values()), shards=tuple(load)) for name, load in loads.items()]
        for name, load in loads.items():
            plan = plan_moves(name, load, told)
            for shard in plan.give:
                taker = plan.next_in_line(shard)
                assert taker is not None
                loads[taker][shard] = load.pop(shard)
    assert [len(load) for load in loads.values()] == [2] * 20


def test_two_workers_share_four_devices() -> None:
    """Anybody who came first has every shard; the other has its share soon, and the weights are the same."""
    devices = ("phone-1", "phone-2", "phone-3", "phone-4")
    world = World(seed=1, variant=toy.Variant(epochs=25), devices=devices, rates=CALM)
    assert run_virtually(world.run()).violations == []
    total = sum(world.steps_by_worker.values())
    assert total == 4 * 100
    assert min(world.steps_by_worker[0], world.steps_by_worker[1]) > total / 4
