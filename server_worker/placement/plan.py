"""The plan of which worker serves which shard is a hint that spreads the work. Safety never rests on it.

The broker gives every shard to one worker at a time, and the next in line gets it when that one lets go.
A worker that serves more sessions than its fair share hands shards on; before that, all workers put
themselves in line so that each shard goes to somebody who has too few. All see the same registry, and
come to the same plan without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server_worker.store import WorkerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementPlan:
    """The moves that would even the load."""

    give: tuple[int, ...]
    """Shards that this worker should hand on."""
    takers: tuple[str, ...]
    """The workers that have too few, by name."""

    def next_in_line(self, shard: int) -> str | None:
        """Return the worker that should get that shard, or None where no worker has too few."""
        return self.takers[shard % len(self.takers)] if self.takers else None


def plan_moves(worker: str, load: Mapping[int, int], workers: Sequence[WorkerInfo]) -> PlacementPlan:
    """`load` counts the active sessions of each shard served here.

    Sessions go from the worker that has most to the one that has least, until that brings no two closer. Of
    its own shards this worker knows the sizes; others are taken to move one session at a time.
    """
    sessions = _counted(worker, load, workers)
    left, given, takers = dict(load), [], set[str]()
    while True:
        giver = max(sessions, key=lambda name: (sessions[name], name))
        taker = min(sessions, key=lambda name: (sessions[name], name))
        moved = 1
        if giver == worker:
            shard = _best(left, sessions[giver] - sessions[taker])
            if shard is None:
                break
            moved = left.pop(shard)
            given.append(shard)
        elif sessions[giver] - sessions[taker] < 2:
            break
        sessions[giver] -= moved
        sessions[taker] += moved
        takers.add(taker)
    return PlacementPlan(give=tuple(given), takers=tuple(sorted(takers - {worker} if given else takers)))


def _counted(worker: str, load: Mapping[int, int], workers: Sequence[WorkerInfo]) -> dict[str, int]:
    """Active sessions by worker. A shard that two of them name is on its way: it counts once, for the one
    with fewer, because the other has not said yet that it let go.
    """
    sessions, taken = {worker: sum(load.values())}, set(load)
    others = [each for each in workers if each.state == "serving" and each.worker != worker]
    for each in sorted(others, key=lambda each: (each.sessions, each.worker)):
        left = set(each.shards) - taken
        taken |= left
        sessions[each.worker] = round(each.sessions * (len(left) / len(each.shards) if each.shards else 1))
    return sessions


def _best(load: Mapping[int, int], excess: int) -> int | None:
    """The shard that brings two workers closest together; None where none does."""
    movable = {shard: count for shard, count in load.items() if 0 < count < excess}
    return min(movable, key=lambda shard: (abs(movable[shard] * 2 - excess), shard), default=None)
