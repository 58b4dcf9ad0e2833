"""The cost of sealing the store: milliseconds to seal and to open one value, and for each MB.

    python -m benchmarks.sealing [--rounds 21]

In process, without a store: W0's requests, a piece of 1 MiB, and W2's largest request. Sealing, opening and a
plain copy take turns, so that all meet the same load of the machine; medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks.harness.report import Table, show_about
from server_worker.store import Attempt
from server_worker.store.keys import StoreKey
from server_worker.store.sealed import Place

SIZES = {"a small request (W0)": 66 << 10, "a piece": 1 << 20, "a large request (W2)": 26 << 20}
PLACE = Place(StoreKey(bytes(32)), "digits.phone-1", 1, Attempt(number=1, nonce="0" * 16))


def measure(nbytes: int, rounds: int) -> list[float]:
    """Median seconds of a copy, a seal and an opening."""
    value = os.urandom(nbytes)
    sealed = bytes(PLACE.seal(value, "request", 0))
    turns: Sequence[Callable[[], object]] = (
        lambda: bytearray(value),
        lambda: PLACE.seal(value, "request", 0),
        lambda: PLACE.open(sealed, "request", 0),
    )
    seconds: list[list[float]] = [[] for _ in turns]
    for _ in range(rounds + 1):
        for turn, taken in zip(turns, seconds, strict=True):
            began = time.perf_counter()
            turn()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken[1:]) for taken in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sealing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    show_about()
    rows = []
    for name, nbytes in SIZES.items():
        copy, seal, opened = measure(nbytes, options.rounds)
        per_mb = [f"{taken * 1e3 / (nbytes / 1e6):.2f}" for taken in (seal, opened)]
        rows.append([name, f"{nbytes:,}", *(f"{taken * 1e3:.2f}" for taken in (copy, seal, opened)), *per_mb])
    head = ["value", "bytes", "copy ms", "seal ms", "open ms", "seal ms/MB", "open ms/MB"]
    Table("Sealing the store", head, rows).show()


if __name__ == "__main__":
    main()
