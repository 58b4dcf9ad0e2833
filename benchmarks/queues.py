"""This measures what the type of the workers' queues costs on W2, with naive aiormq for comparison.

    python -m benchmarks.queues [--rounds 7] [--steps 3]

All of them are on one broker and one Redis, each stack with a virtual host, a database and a worker of its
own, and take laps in turn; the figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Contestant, Field, Services, services
from benchmarks.harness.submission import enter_ours
from benchmarks.harness.workloads import W2, Workload
from benchmarks.healthy import OURS, Figure, enter_peer, figures_of, table_of
from broker.transport.topology import QueueType

SYSTEMS = ("ours lossless", "ours fp16")
GOALS = {"ours lossless, classic": 0.6, "ours fp16, classic": 0.4}
"""At most this share of what naive aiormq adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The share that classic queues add to a step of what quorum queues add, in the same rounds."""

    system: str
    of_quorum: float


def run(rounds: int, steps: int, workload: Workload = W2) -> tuple[list[Figure], list[Share]]:
    """Race both types."""
    with services() as running:
        beside = _another_stack(running)
        with Field(running, QueueType.CLASSIC) as first, Field(beside, QueueType.QUORUM) as second:
            first.enter("plain", ["-m", "benchmarks.peers", "plain", "device", workload.name, "1"], {})
            enter_peer(first, workload, "naive aiormq")
            for field in (first, second):
                worker = field.worker()
                for system in SYSTEMS:
                    enter_ours(field, workload, f"{system}, {field.queues}", OURS[system], worker)
            contestants = [*first.contestants, *second.contestants]
            for _ in range(rounds + 1):
                for contestant in contestants:
                    contestant.lap(steps)
                print(".", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
            return figures_of(workload, contestants), _shares(contestants)


def _another_stack(running: Services) -> Services:
    """Return the same servers with a virtual host and a database of their own."""
    running.rabbitmq.ctl("add_vhost", "quorum")
    running.rabbitmq.ctl("set_permissions", "-p", "quorum", running.rabbitmq.user, ".*", ".*", ".*")
    return replace(running, vhost="quorum", database=1)


def _shares(contestants: Sequence[Contestant]) -> list[Share]:
    laps = {one.name: [statistics.median(lap) for lap in one.seconds[1:]] for one in contestants}
    plain = laps["plain"]
    shares = []
    for system in SYSTEMS:
        pairs = zip(laps[f"{system}, classic"], laps[f"{system}, quorum"], plain, strict=True)
        share = statistics.median((classic - base) / (quorum - base) for classic, quorum, base in pairs)
        shares.append(Share(system=system, of_quorum=share))
    return shares


def goal_of(figure: Figure) -> str:
    """The goal and whether it was met; empty where there is none."""
    most = GOALS.get(figure.system)
    if most is None or figure.of_naive is None:
        return ""
    return goal(f"≤ {most:g} of naive's", figure.of_naive <= most)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queues", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of a lap")
    options = parser.parse_args()
    began = show_about()
    figures, shares = run(options.rounds, options.steps)
    tables = [
        table_of(figures, "classic and quorum queues", goal_of),
        Table(
            "What classic queues add to a step, over what quorum queues add",
            ["system", "share"],
            [[one.system, f"{one.of_quorum:.2f}"] for one in shares],
        ),
    ]
    for table in tables:
        table.show()
    save("queues", [*map(asdict, figures), *map(asdict, shares)], tables, began)


if __name__ == "__main__":
    main()
