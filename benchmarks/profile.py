"""A profile of the time of a step: `python -m benchmarks.profile [--workloads W0 W2] [--steps 20]`.

The moments at which head, body, tail, log and commit begin and end, and messages are sent and received
whole, by the clock that all processes of a machine share; medians over the steps. Beside them the
processor time that each process and our own packing of bytes take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness.report import Table, save, show_about
from benchmarks.harness.services import Field, services
from benchmarks.harness.submission import submit
from benchmarks.harness.workloads import WORKLOADS, Workload
from benchmarks.healthy import OURS

WAY = (
    ("head begins", ""),
    ("head ends", "compute: head"),
    ("FORWARD sent", "hand over"),
    ("FORWARD received", "up: encode, publish, broker, consume, decode"),
    ("body forward begins", "hand over"),
    ("body forward ends", "compute: body forward"),
    ("FORWARDED sent", "hand over"),
    ("FORWARDED received", "down: encode, publish, broker, consume, decode"),
    ("tail begins", "hand over"),
    ("tail ends", "compute: tail"),
    ("BACKWARD sent", "hand over"),
    ("BACKWARD received", "up: encode, publish, broker, consume, decode"),
    ("body backward begins", "hand over"),
    ("body backward ends", "compute: body backward and step"),
    ("commit begins", "wait for the log"),
    ("commit ends", "commit"),
    ("GRADIENT sent", "hand over"),
    ("GRADIENT received", "down: encode, publish, broker, consume, decode"),
    ("apply begins", "hand over"),
    ("apply ends", "compute: head backward and step"),
    ("next head begins", "checkpoint and next"),
)
"""The critical path of a step: each moment, and what the time since the one before is spent on."""


def trace(workload: Workload, system: str, steps: int) -> dict[str, Any]:
    """Milliseconds of a step by part, and processor milliseconds by process."""
    with services() as running:
        with Field(running) as field:
            job = f"{workload.name} {system}".lower().replace(" ", "-")
            submit(workload.job(job, OURS[system]), running.store)
            files = [str(running.folder / name) for name in ("worker.json", "agent.json")]
            worker = field.worker("-m", "benchmarks.harness.stopwatch", files[0])
            arguments = ["-m", "benchmarks.harness.stopwatch", files[1], "benchmarks.harness.agent_runner"]
            arguments += [workload.name, job, running.broker, str(running.folder / job)]
            contestant = field.enter(system, arguments, {"worker": worker, **running.pids()})
            contestant.lap(max(2, steps // 5))
            seconds = contestant.lap(steps)
            assert contestant.device.stdin is not None
            contestant.device.stdin.close()
            contestant.device.wait()
        # The worker has drained, and written its file, when the field is left.
        found = [json.loads(Path(file).read_text()) for file in files]
        own = {
            f"{side}, {part}": spent[1] * 1000 / max(1, len(_steps(found)))
            for side, one in zip(("worker", "device"), found, strict=True)
            for part, spent in one["spent"].items()
        }
        return {
            "workload": workload.name,
            "system": system,
            "step_ms": statistics.median(seconds) * 1000,
            "parts_ms": _parts(_steps(found)[-steps:]) if OURS[system].micro_batches == 1 else {},
            "cpu_ms": {role: value * 1000 for role, value in contestant.cpu[-1].items()},
            "own_cpu_ms": own,
        }


def _steps(found: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The moments of each step that has them all."""
    by_step: dict[int, dict[str, float]] = defaultdict(dict)
    for one in found:
        for step, what, at in one["moments"]:
            by_step[step][what] = at
    steps = []
    for step, moments in sorted(by_step.items()):
        if "head begins" in by_step.get(step + 1, {}):
            moments["next head begins"] = by_step[step + 1]["head begins"]
        if all(what in moments for what, _ in WAY):
            steps.append(moments)
    return steps


def _parts(steps: list[dict[str, float]]) -> dict[str, float]:
    """Medians of the parts of the way; equal parts of a step are added up first."""
    sums: dict[str, list[float]] = defaultdict(list)
    for moments in steps:
        one: dict[str, float] = defaultdict(float)
        for (before, _), (after, part) in pairwise(WAY):
            one[part] += (moments[after] - moments[before]) * 1000
        for part, value in one.items():
            sums[part].append(value)
    return {part: statistics.median(values) for part, values in sums.items()}


def tables_of(found: dict[str, Any]) -> list[Table]:
    """The parts of the way, and who computes."""
    whole = sum(found["parts_ms"].values())
    rows = [
        [part, f"{value:.1f}", f"{value / whole * 100:.0f}"]
        for part, value in sorted(found["parts_ms"].items(), key=lambda item: -item[1])
    ]
    title = f"{found['workload']} {found['system']}: {found['step_ms']:.1f} ms a step"
    if not rows:  # parts of a batch overlap: there is no one path
        rows = [["the parts of a batch overlap", "–", "–"]]
    parts = Table(title, ["part of the critical path", "ms", "%"], rows)
    rows = [[name, f"{value:.1f}"] for name, value in (found["cpu_ms"] | found["own_cpu_ms"]).items()]
    title = f"{found['workload']} {found['system']}: processor time"
    return [parts, Table(title, ["process, part of it", "ms a step"], rows)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["W2", "W0"])
    parser.add_argument("--systems", nargs="+", choices=OURS, default=["ours"])
    parser.add_argument("--steps", type=int, default=0, help="default: 15 s of them")
    options = parser.parse_args()
    about = show_about()
    everything, tables = [], []
    for name in options.workloads:
        for system in options.systems:
            began = time.perf_counter()
            steps = options.steps or {"W0": 300, "W1": 8, "W2": 15}[name]
            found = trace(WORKLOADS[name], system, steps)
            found["seconds"] = time.perf_counter() - began
            everything.append(found)
            tables += tables_of(found)
            for table in tables[-2:]:
                table.show()
    save("profile", everything, tables, about)


if __name__ == "__main__":
    main()
