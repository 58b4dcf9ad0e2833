"""Step time on healthy loopback over the same model in one plain process: ours, and what else there is.

    python -m benchmarks.healthy [--workloads W0 W2] [--systems ours naive] [--rounds 5]

All systems of a workload wait beside each other and take laps in turn, so that each round compares them
under the same conditions; the figures are medians over the rounds. Ours is durable: Redis
with an append-only file synced every second. Its queues are those of a new local stack (`benchmarks.queues`
compares their types).
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Contestant, Field, free_port, services
from benchmarks.harness.submission import enter_ours
from benchmarks.harness.workloads import WORKLOADS, Setting, Workload

OURS = {
    "ours": Setting(),
    "ours lossless": Setting(activations="lossless"),
    "ours fp16": Setting(activations="fp16", gradients="fp16"),
    "ours, M = 2": Setting(micro_batches=2),
    "ours, M = 4": Setting(micro_batches=4),
}
CUT = {"plain, M = 2": 2, "plain, M = 4": 4}
"""The plain process, which adds up the gradients of so many parts of a batch: what the computation alone
costs when a batch is cut."""
PEERS = {
    "raw TCP": "tcp",
    "torch RPC": "rpc",
    "naive aiormq": "amqp",
    "HTTP + JSON": "http",
    "TorchSlicer TCP": "torchslicer:tcp",
    "TorchSlicer gRPC": "torchslicer:grpc",
    "hivemind": "hivemind",
}
"""The other systems by name: the module of `benchmarks.peers`, and what it puts before the address."""
EXTRA = ("torchslicer", "hivemind")
"""Packages of the extra `peers`, which are left out where they aren't installed."""
SYSTEMS = ("plain", *CUT, *PEERS, *OURS)
STEPS = {"W0": 40, "W1": 1, "W2": 3}
"""Steps of a lap."""
SLOW = {("W1", "HTTP + JSON"): 2}
"""Rounds of what takes ten times as long; it is left out elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One system on one workload. Seconds a step, medians over rounds; `ratio` and `added_s` are medians
    of each round's own comparison with plain; `cpu_s` by role."""

    workload: str
    system: str
    step_s: float
    ratio: float
    added_s: float
    of_naive: float | None
    """The time added over that which naive aiormq adds, in the same rounds."""
    cpu_s: dict[str, float]
    rounds: int


def run(workload: Workload, systems: Sequence[str], rounds: int) -> list[Figure]:
    """Race the systems."""
    with services() as running, Field(running) as field:
        worker = None
        for name in ("plain", *(name for name in systems if name != "plain")):
            if name == "plain" or name in CUT:
                parts = str(CUT.get(name, 1))
                field.enter(name, ["-m", "benchmarks.peers", "plain", "device", workload.name, parts], {})
            elif name in OURS:
                worker = worker or field.worker()
                enter_ours(field, workload, name, OURS[name], worker)
            elif name != "HTTP + JSON" or (workload.name, name) in SLOW:
                try:
                    enter_peer(field, workload, name)
                except RuntimeError as error:
                    if PEERS[name].partition(":")[0] not in EXTRA:
                        raise
                    print(f"left out: {name}: {error}", file=sys.stderr)
        for turn in range(rounds + 1):
            for contestant in field.contestants:
                if turn <= SLOW.get((workload.name, contestant.name), rounds):
                    contestant.lap(STEPS[workload.name])
            print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return figures_of(workload, field.contestants)


def enter_peer(field: Field, workload: Workload, name: str) -> None:
    """Start another system: its server, and its device."""
    module, _, variant = PEERS[name].partition(":")
    others = {}
    address = f"{variant}:{free_port()}" if variant else str(free_port())
    if module == "amqp":
        address = field.services.broker
        others["broker"] = field.services.pids()["broker"]
    server = field.spawn("-m", "benchmarks.peers", module, "serve", workload.name, address)
    arguments = ["-m", "benchmarks.peers", module, "device", workload.name, address]
    field.enter(name, arguments, {"worker": server.pid, **others})


def figures_of(workload: Workload, contestants: Sequence[Contestant]) -> list[Figure]:
    """Compare their laps; the first of each is left out."""
    laps = {one.name: [statistics.median(lap) for lap in one.seconds[1:]] for one in contestants}
    plain = laps["plain"]
    added = {
        name: [ours - theirs for ours, theirs in zip(own, plain, strict=False)] for name, own in laps.items()
    }
    figures = []
    for one in contestants:
        own = laps[one.name]
        roles = one.cpu[-1].keys()
        of_naive = None
        if "naive aiormq" in added and not one.name.startswith("plain"):
            pairs = zip(added[one.name], added["naive aiormq"], strict=False)
            of_naive = statistics.median(a / b for a, b in pairs)
        figures.append(
            Figure(
                workload=workload.name,
                system=one.name,
                step_s=statistics.median(own),
                ratio=statistics.median(a / b for a, b in zip(own, plain, strict=False)),
                added_s=statistics.median(added[one.name]),
                of_naive=of_naive,
                cpu_s={role: statistics.median(lap[role] for lap in one.cpu[1:]) for role in roles},
                rounds=len(own),
            )
        )
    return figures


def goal_of(figure: Figure) -> str:
    """The goal and whether it was met; empty where there is none."""
    share = figure.of_naive
    match figure.workload, figure.system:
        case "W1", "ours":
            return goal("× ≤ 1.05", figure.ratio <= 1.05)
        case "W1", "ours, M = 2" | "ours, M = 4":
            return goal("× < 1", figure.ratio < 1)
        case "W2", "ours":
            return goal("≤ 0.5 of naive's", share is not None and share <= 0.5)
        case "W2", "ours fp16":
            return goal("≤ 0.3 of naive's", share is not None and share <= 0.3)
        case "W0", "ours":
            return goal("≤ 8 ms added", figure.added_s <= 0.008)
    return ""


def _missing(system: str) -> bool:
    """Return whether the system needs a package of the extra that isn't installed."""
    package = PEERS.get(system, "").partition(":")[0]
    return package in EXTRA and importlib.util.find_spec(package) is None


def table_of(
    figures: Sequence[Figure], title: str = "healthy loopback", goal_of: Callable[[Figure], str] = goal_of
) -> Table:
    """One workload's systems."""
    rows = [
        [
            one.system,
            f"{one.step_s * 1000:.1f}",
            f"{one.ratio:.2f}",
            f"{one.added_s * 1000:+.1f}",
            "" if one.of_naive is None else f"{one.of_naive:.2f}",
            " ".join(f"{role} {seconds * 1000:.0f}" for role, seconds in one.cpu_s.items()),
            goal_of(one),
        ]
        for one in figures
    ]
    head = ["system", "ms a step", "× plain", "ms added", "of naive's", "CPU ms a step", "goal"]
    return Table(f"{figures[0].workload}: {title}", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.healthy", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    began = show_about()
    systems = [name for name in options.systems if not _missing(name)]
    if left_out := [name for name in options.systems if _missing(name)]:
        print(f"left out: {', '.join(left_out)} (to have them: pip install -e '.[peers]')")
    figures, tables = [], []
    for name in options.workloads:
        found = run(WORKLOADS[name], systems, options.rounds)
        tables.append(table_of(found))
        tables[-1].show()
        figures += found
    save("healthy", [asdict(one) for one in figures], tables, began)


if __name__ == "__main__":
    main()
