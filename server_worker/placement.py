"""Which worker serves which shard: a hint that spreads the work. Safety never rests on it.

The broker gives every shard to one worker at a time. A worker that serves more sessions than its fair
share hands a shard on, and the broker gives it to the next in line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server_worker.store import WorkerInfo


def shard_to_yield(worker: str, load: Mapping[int, int], workers: Sequence[WorkerInfo]) -> int | None:
    """The shard that this worker should hand on, or None.

    `load` counts the active sessions of each shard served here. A shard is handed on only if that
    brings this worker and the least loaded one closer together.
    """
    serving = [w for w in workers if w.state == "serving"]
    others = [w.sessions for w in serving if w.worker != worker]
    if not others:
        return None
    own = sum(load.values())
    excess = own - min(others)
    movable = {shard: count for shard, count in load.items() if 0 < count < excess}
    if not movable:
        return None
    return min(movable, key=lambda shard: (abs(movable[shard] * 2 - excess), shard))
