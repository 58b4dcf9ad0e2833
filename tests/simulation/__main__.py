"""`python -m tests.simulation`: run seeds, or replay one.

--seeds 10000 [--first 0] [--processes 2]    a sweep; the last line is `violations=N`
--seed 4711                                  one seed, with its history
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.run import Summary, play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="replay this one and print its history")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return _replay(arguments.seed)
    return _sweep(range(arguments.first, arguments.first + arguments.seeds), arguments.processes)


def _replay(seed: int) -> int:
    summary = play(seed)
    print("\n".join(summary.history))
    _print_counts(summary.faults)
    print("\n".join(summary.violations))
    print(f"seed {seed}: {summary.virtual_s:.1f} s of virtual time")
    print(f"violations={len(summary.violations)}")
    return 1 if summary.violations else 0


def _sweep(seeds: range, processes: int) -> int:
    gc.freeze()  # torch's modules live as long as the process: no collection need look at them
    began, done, faults, violations = time.monotonic(), 0, Counter[str](), 0
    failed: list[int] = []
    for summary in _played(seeds, processes):
        done += 1
        faults += summary.faults
        if summary.violations:
            violations += len(summary.violations)
            failed.append(summary.seed)
            print(f"seed {summary.seed}: {summary.violations[0]}", flush=True)
        if done % 500 == 0:
            print(
                f"{done} of {len(seeds)} seeds, {done / (time.monotonic() - began) * 60:.0f} a minute",
                flush=True,
            )
    _print_counts(faults)
    if failed:
        print(f"replay one with: make simulate SEED={failed[0]}")
    print(f"{done} seeds, {done / (time.monotonic() - began) * 60:.0f} a minute")
    print(f"violations={violations}")
    return 1 if violations else 0


def _played(seeds: range, processes: int) -> Iterator[Summary]:
    if processes == 1:
        yield from map(play, seeds)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(play, seeds, chunksize=8)


def _print_counts(faults: Counter[str]) -> None:
    print("faults injected: " + ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items())))


if __name__ == "__main__":
    sys.exit(main())
