"""The resources of an agent while it does nothing: `python -m benchmarks.idle`.

Memory and processor time of one `spliteasy agent` with `--when`: before it may begin (it has connected to
nothing), and after some steps, paused with its connection up and heartbeats going. `base` is a Python that
has imported torch, and nothing of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Field, Services, services
from benchmarks.harness.submission import submit, until_served
from benchmarks.harness.timed_runs import cpu_seconds, resident_bytes
from benchmarks.harness.workloads import WORKLOADS, Setting

GOAL_MB, GOAL_CPU = 150, 1.0
"""The goals above torch alone, in MB and in percent of one core."""
ALLOCATOR = dict.fromkeys(
    ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"), str(128 << 10)
)
"""The environment as it is on a device, not as the other benchmarks have it."""
DATA = """
import torch
from torch.utils.data import TensorDataset


def load():
    return TensorDataset(torch.zeros(300, 1, 8, 8), torch.zeros(300, dtype=torch.int64))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """An idle process: resident memory, and processor seconds a second."""

    state: str
    bytes: int
    cpu: float
    seconds: float


def measure(running: Services, seconds: float) -> list[Figure]:
    """Torch alone, then an agent that may not begin, then the same one after some steps, paused."""
    submit(WORKLOADS["W0"].job("idle", Setting()), running.store)
    folder = running.folder / "device"
    folder.mkdir()
    (folder / "phone.py").write_text(DATA)
    go, log = folder / "go", folder / "log"
    with Field(running) as field:
        field.worker()
        asyncio.run(until_served(running.store))
        program = "import torch, time; torch.set_num_threads(1); print(flush=True); time.sleep(10**6)"
        base = field.spawn("-c", program, piped=True, env=ALLOCATOR)
        base.stdout.readline()
        figures = [_watch("torch alone", base.pid, seconds)]
        root = f"import os, sys; os.chdir({str(folder)!r}); sys.path.insert(0, '.')"
        words = ["spliteasy", "agent", "--job", "idle", "--device", "phone-1", "--data", "phone:load"]
        words += ["--broker", running.broker, "--state", "state", "--when", f"test -e {go}"]
        program = f"{root}; sys.argv = {words!r}; from spliteasy_cli import main; sys.exit(main())"
        with log.open("w") as out:
            agent = field.spawn("-c", program, env=ALLOCATOR, out=out)
        _wait_for(log, agent, "paused", 1)
        figures.append(_watch("waiting to begin", agent.pid, seconds))
        go.touch()
        _wait_for(log, agent, '"training"', 1)
        go.unlink()
        _wait_for(log, agent, "paused", 2)
        figures.append(_watch("paused, connected", agent.pid, seconds))
    return figures


def _wait_for(log: Path, agent: subprocess.Popen[str], text: str, times: int) -> None:
    while log.read_text().count(text) < times:
        if agent.poll() is not None:
            raise RuntimeError(f"the agent ended: {log.read_text()[-500:]}")
        time.sleep(0.1)


def _watch(state: str, pid: int, seconds: float) -> Figure:
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return Figure(
        state=state, bytes=resident_bytes(pid), cpu=(cpu_seconds(pid) - before) / took, seconds=took
    )


def table_of(figures: Sequence[Figure]) -> Table:
    base = figures[0].bytes
    rows = [
        [
            one.state,
            f"{one.bytes / 1e6:.0f}",
            f"{(one.bytes - base) / 1e6:.0f}",
            f"{100 * one.cpu:.2f}",
            "–"
            if one is figures[0]
            else goal(
                f"≤ {GOAL_MB} MB, ≤ {GOAL_CPU:g} %",
                one.bytes - base <= GOAL_MB * 1e6 and 100 * one.cpu <= GOAL_CPU,
            ),
        ]
        for one in figures
    ]
    return Table("An idle agent", ["state", "MB resident", "above torch", "% of a core", "goal"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="to watch each state")
    options = parser.parse_args()
    began = show_about()
    with services() as running:
        figures = measure(running, options.seconds)
    table = table_of(figures)
    table.show()
    save("idle", [asdict(one) for one in figures], [table], began)


if __name__ == "__main__":
    main()
