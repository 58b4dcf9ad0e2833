"""`python -m benchmarks.plan`: are the planner's predictions true, and are its cuts good?

1. Two models over three emulated links: the predicted time of a step against the measured one.
2. The six networks of the paper on a slow device over one link: the planner's cut against the paper's own
   (first cut right after the stem, second right before the classifier), both measured.

Runs on a RabbitMQ, a Redis and a worker of its own; what these take a message is measured first, over
the open link, as a profile. The device is in this process; a slow one waits after it has computed.
The last line is `worst_error=…% slower_than_paper=N`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.emulator.link import LinkEmulator
from benchmarks.emulator.profiles import PROFILES
from benchmarks.harness.plan_models import PAPER, PREDICTED, job
from benchmarks.harness.services import Field, Services, services
from broker import connect
from deploy.nodes.native import HOST
from server_worker.store import StoredJob, open_store
from spliteasy.job import Job, JobSpec, parse_job
from spliteasy.job.source import Source, load_source
from spliteasy.observability import logs
from spliteasy.planning.choice import Cut
from spliteasy.planning.planner import CutPlan, plan_source
from spliteasy.planning.profile import Overhead, Profile, measure_compute
from spliteasy.runtime.torch_thread import TorchThread
from spliteasy_cli.probes.pipeline import Probed, overhead_of, probe_job, probed, step_seconds

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
LINKS = ("wifi", "lte", "3g")
PAPER_LINK = "lte"
DEVICE_SPEED = 0.1
WITHIN = 0.2
SLOWER = 1.02
"""A cut this much slower than the paper's still counts as equal, because of noise."""


class SlowThread:
    """Computes as a device of that speed would: it waits after each computation."""

    def __init__(self, speed: float) -> None:
        self.thread = TorchThread("slow")
        self._wait_for = 1 / speed - 1

    async def __call__(self, run: Callable[[], T]) -> T:
        result, computing_s = await self.thread(lambda: _timed(run))
        await asyncio.sleep(computing_s * self._wait_for)
        return result


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    """Run it, and return its result and the processor time, which others on the machine don't add to."""
    began = time.thread_time()
    return run(), time.thread_time() - began


@dataclass(frozen=True, slots=True)
class Bench:
    """Services with a worker, and what a message takes on them."""

    services: Services
    folder: Path
    profile: Profile
    worker: subprocess.Popen[str]

    def plan(self, spec: JobSpec, source: Source | None = None) -> CutPlan:
        return plan_source(source or load_source(spec, ROOT), profile=self.profile)

    def measure(self, spec: JobSpec, link: str, data: str, steps: int, speed: float = 1.0) -> float:
        """Median seconds of a step over that link."""
        return statistics.median(asyncio.run(self.steps(spec, link, data, steps, speed)))

    async def steps(self, spec: JobSpec, link: str, data: str, steps: int, speed: float) -> list[float]:
        """Seconds of each step. Raises RuntimeError where the worker has ended."""
        training = asyncio.create_task(
            _measure(self.services, self.folder, spec, link, data, steps=steps, speed=speed)
        )
        while not training.done():
            await asyncio.wait({training}, timeout=1.0)
            if self.worker.poll() is not None:
                training.cancel()
                raise RuntimeError(f"the worker ended with {self.worker.returncode}")
        return training.result()


async def _measure(
    on: Services, folder: Path, spec: JobSpec, link: str, data: str, *, steps: int, speed: float
) -> list[float]:
    made = Job.create(spec, ROOT)
    store = await open_store(on.store)
    try:
        await store.put_job(
            StoredJob(name=made.name, digest=made.digest, manifest=made.manifest, parts=dict(made.parts))
        )
    finally:
        await store.close()
    state = Path(tempfile.mkdtemp(dir=folder))
    slow = SlowThread(speed)
    try:
        async with LinkEmulator((HOST, on.rabbitmq.port), PROFILES["open"]) as emulator:
            url = replace(on.rabbitmq, port=emulator.port).url()
            emulator.set_profile(PROFILES[link])
            return await step_seconds(
                made.name,
                data,
                connect=lambda: connect(url),
                state=state,
                steps=steps,
                warm_up=2,
                root=ROOT,
                compute=slow,
            )
    finally:
        slow.thread.close()


@contextmanager
def bench() -> Iterator[Bench]:
    """Start services and a worker; measure what a message takes on them."""
    with services() as on, Field(on) as field, tempfile.TemporaryDirectory() as name:
        worker = field.spawn(
            *("-m", "spliteasy_cli", "worker"),
            *("--broker", on.broker, "--store", on.store, "--trust", "open"),
        )
        compute = measure_compute()
        no_overhead = Overhead(round_trip_s=0, byte_s=0)
        empty = Bench(on, Path(name), Profile(compute=compute, overhead=no_overhead), worker)
        probes: list[Probed] = []
        for factory in ("narrow", "wide"):
            spec = parse_job(probe_job(factory))
            plan = empty.plan(spec)
            steps = empty.steps(spec, "open", "spliteasy_cli.probes.pipeline:data", 15, 1.0)
            seconds = asyncio.run(steps)
            probes.append(probed(plan, seconds))
        overhead = overhead_of(*probes)
        a_trip, a_byte = overhead.round_trip_s * 1e3, overhead.byte_s * 1e9
        print(f"pipeline: {a_trip:.1f} ms a round trip, {a_byte:.2f} ns a byte", flush=True)
        yield replace(empty, profile=Profile(compute=compute, overhead=overhead))


def settings(link: str, speed: float = 1.0) -> dict[str, object]:
    """The `[plan]` of an emulated link, and of this machine as busy as it is."""
    profile, share = PROFILES[link], core_share()
    assert profile.up_bytes_s is not None
    assert profile.down_bytes_s is not None
    return {
        "uplink": f"{profile.up_bytes_s * 8 / 1e6:g}mbit",
        "downlink": f"{profile.down_bytes_s * 8 / 1e6:g}mbit",
        "rtt": f"{(2 * profile.latency_s + profile.jitter_s) * 1e3:g}ms",
        "device_speed": 1 / (1 / speed - 1 + 1 / share),
        "server_speed": share,
    }


def core_share(seconds: float = 1.0) -> float:
    """Return the part of a core that a computation gets now, beside what else runs on this machine.

    The planner counts processor time, and what is measured is time on the wall.
    """
    left, right = torch.randn(2, 256, 256)
    began, computed = time.perf_counter(), time.thread_time()
    while time.perf_counter() - began < seconds:
        torch.mm(left, right)
    return min(1.0, (time.thread_time() - computed) / (time.perf_counter() - began))


def predictions(on: Bench, steps: int) -> float:
    """Part 1: print predicted against measured; returns the largest relative error."""
    print(
        f"{'model':<12}{'cuts':<22}{'link':<6}{'core':>6}{'bytes':>11}{'predicted':>12}{'measured':>12}"
        f"{'error':>8}"
    )
    worst = 0.0
    for name, (cuts, batch) in PREDICTED.items():
        source = load_source(parse_job(job(name, cuts, batch, "plan")), ROOT)
        for link in LINKS:
            spec = parse_job(job(name, cuts, batch, link, **settings(link)))
            plan = on.plan(spec, replace(source, spec=spec))
            assert plan.own is not None
            measured = on.measure(spec, link, f"benchmarks.harness.plan_models:DATA.{name}", steps)
            error = plan.own.step_s / measured - 1
            worst = max(worst, abs(error))
            share, predicted_ms = spec.plan.server_speed, plan.own.step_s * 1e3
            moved = plan.own.bytes_up + plan.own.bytes_down
            print(
                f"{name:<12}{' | '.join(cuts):<22}{link:<6}{share:>6.0%}{moved:>11,}{predicted_ms:>9.1f} ms"
                f"{measured * 1e3:>9.1f} ms{error:>8.1%}",
                flush=True,
            )
    return worst


def against_paper(on: Bench, names: Sequence[str], steps: int) -> int:
    """Part 2: print both cuts' times; returns how many networks the planner's cut is slower on."""
    print(f"\n{PAPER_LINK}, device {DEVICE_SPEED:g} of this machine")
    slower = 0
    for name in names:
        cuts, batch = PAPER[name]
        spec = parse_job(job(name, cuts, batch, "paper", **settings(PAPER_LINK, DEVICE_SPEED)))
        plan = on.plan(spec)
        assert plan.own is not None
        data = f"benchmarks.harness.plan_models:DATA.{name}"
        paper_s = on.measure(spec, PAPER_LINK, data, steps, DEVICE_SPEED)
        core = f"core {spec.plan.server_speed:.0%}"
        print(f"{name:<18}paper   {_told(plan.own, paper_s)}  {core}", flush=True)
        if plan.best.cuts == cuts:
            print(f"{'':<18}planner the same cuts")
            continue
        best = parse_job(job(name, plan.best.cuts, batch, "best"))
        best_s = on.measure(best, PAPER_LINK, data, steps, DEVICE_SPEED)
        print(
            f"{'':<18}planner {_told(plan.best, best_s)}  {best_s / paper_s:.2f} of the paper's", flush=True
        )
        slower += best_s > SLOWER * paper_s
    return slower


def _told(cut: Cut, measured: float) -> str:
    names = " | ".join(cut.cuts)
    return f"{names:<58} predicted {cut.step_s * 1e3:>7.0f} ms, measured {measured * 1e3:>7.0f} ms"


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables; exit code 1 where a prediction is off by more than 20 %, or a cut slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument("--steps", type=int, default=5, help="steps measured a row")
    parser.add_argument("--only", choices=("links", "paper"))
    parser.add_argument("--networks", nargs="+", choices=PAPER, default=list(PAPER))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    logs.configure("error")
    worst, slower = 0.0, 0
    with bench() as on:
        if options.only != "paper":
            worst = predictions(on, options.steps)
        if options.only != "links":
            slower = against_paper(on, options.networks, options.steps)
    print(f"worst_error={worst:.1%} slower_than_paper={slower}")
    return int(worst > WITHIN or slower > 0)


if __name__ == "__main__":
    sys.exit(main())
