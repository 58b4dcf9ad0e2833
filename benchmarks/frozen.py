"""The memory and the bytes in the store of sessions over one frozen base: `python -m benchmarks.frozen`.

A worker's engine and its store (Redis), without a broker: 32 sessions of a job whose body is a frozen base
of 100 MB with adapters. Each takes a step and writes a snapshot. Beside it the same with a copy of the base
in each session, as the body is where nothing is shared. Each is a process of its own; memory is its growth
from before the job was loaded, after a step of a small model.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Field, Services, services
from benchmarks.harness.timed_runs import answer, peak_bytes, resident_bytes
from server_worker.engine.base import Backward, Forward, LoadProgram, OpenBody, Step, TakeSnapshot
from server_worker.engine.local import LocalEngine
from server_worker.store import Attempt, Done, Store, open_store
from spliteasy.codecs.packer import Packed
from spliteasy.job import Job
from spliteasy.job.file import parse_job
from spliteasy.runtime.torch_thread import TorchThread
from spliteasy_cli.commands.submit import store_job

WIDTH, LAYERS, RANK, SAMPLES = 1024, 25, 4, 4
GOAL_MB = 300
SHARED, COPIES = "shared", "a copy each"
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 20),
    "MALLOC_TOP_PAD_": "0",
}


class Adapted(nn.Module):
    """A frozen linear layer with a trained one of low rank beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH)
        self.down, self.up = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH, bias=False)

    def forward(self, given: Tensor) -> Tensor:
        return torch.tanh(self.base(given)) + self.up(self.down(given))


def build() -> nn.Module:
    """The whole model; a job freezes the bases."""
    return nn.Sequential(
        nn.Linear(16, WIDTH), nn.Sequential(*(Adapted() for _ in range(LAYERS))), nn.Linear(WIDTH, 4)
    )


def example() -> tuple[Tensor, Tensor]:
    return torch.zeros(SAMPLES, 16), torch.zeros(SAMPLES, dtype=torch.int64)


def job() -> Job:
    return Job.create(
        parse_job(
            {
                "name": "frozen",
                "batch_size": SAMPLES,
                "epochs": 1,
                "model": {
                    "factory": "benchmarks.frozen:build",
                    "example": "benchmarks.frozen:example",
                    "cuts": ["0", "1"],
                },
                "loss": {"name": "cross_entropy"},
                "optimizer": {
                    "name": "adamw",
                    "lr": 0.001,
                    "groups": [{"pattern": "1.*.base.*", "frozen": True}],
                },
            }
        ),
        None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The sessions of one worker: growth of its memory, and the bytes of their snapshots."""

    base: str
    sessions: int
    base_bytes: int
    resident_bytes: int
    peak_bytes: int
    snapshot_bytes: int
    """The bytes of all sessions' snapshots."""


async def _serve(url: str, sessions: int, base: str) -> Figure:
    thread, store = TorchThread(), await open_store(url)
    engine = LocalEngine(thread)
    await thread(_warm_up)
    before = resident_bytes(os.getpid())
    loaded = await _load(store, engine, base)
    bodies, written = [], 0
    for place in range(sessions):
        name = f"frozen.{base.replace(' ', '-')}-{place}"
        body = await engine.perform(OpenBody(loaded, name, f"phone-{place}"))
        bodies.append(body)  # all stay open, as those of devices that train at the same time
        values = Packed((torch.randn(SAMPLES, WIDTH),))
        asked = Forward(body=body, micro=0, samples=SAMPLES, batch=SAMPLES, values=values)
        done = await engine.perform(asked)
        await engine.perform(Backward(body=body, step=1, gradients=done.outputs))
        digest = (await engine.perform(Step(body))).digest
        tensors = await engine.perform(TakeSnapshot(body))
        written += sum(map(len, tensors.values()))
        await _keep(store, name, loaded.digest, digest, tensors)
    figure = Figure(
        base=base,
        sessions=len(bodies),
        base_bytes=sum(t.nbytes for name, t in loaded.body.tensors().items() if ".base." in name),
        resident_bytes=resident_bytes(os.getpid()) - before,
        peak_bytes=peak_bytes(os.getpid()) - before,
        snapshot_bytes=written,
    )
    await store.close()
    thread.close()
    return figure


def _warm_up() -> None:
    """Take a step of a small model: torch loads more of itself at the first one, whatever is trained."""
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    model(torch.zeros(2, 4)).sum().backward()
    optimizer.step()


async def _load(store: Store, engine: LocalEngine, base: str) -> Job:
    stored = await store.get_job("frozen")
    assert stored is not None
    if base == SHARED:
        return await engine.perform(LoadProgram(stored.manifest, stored.parts))
    return Job.from_parts(stored.manifest, stored.parts)


async def _keep(store: Store, name: str, job: str, digest: str, tensors: dict[str, bytes]) -> None:
    """Commit the step, and write its snapshot."""
    attempt = Attempt(number=1, nonce="0" * 16)
    opened = await store.open_session(
        name, job_digest=job, attempt=attempt, held=(0,), worker="bench", environment=""
    )
    assert isinstance(opened, Done)
    owner = opened.meta.owner
    await store.put_request(name, attempt=attempt, owner=owner, step=1, index=0, body=b"request")
    await store.commit(
        name, attempt=attempt, owner=owner, step=1, requests=1, gradient_digest=digest, oldest_checkpoint=0
    )
    await store.put_snapshot(name, attempt=attempt, owner=owner, step=1, tensors=tensors)


def measure(running: Services, sessions: int, base: str) -> tuple[Figure, int]:
    """One process that serves so many sessions, and how far Redis grew by their snapshots."""
    with Field(running) as field:
        before = resident_bytes(running.pids()["store"])
        process = field.enter(
            base,
            ["-m", "benchmarks.frozen", "--sessions", str(sessions), "--serve", running.store, base],
            {},
            env=ALLOCATOR,
        )
        grown = resident_bytes(running.pids()["store"]) - before
        return Figure(**process.ready), grown


def table_of(figures: Sequence[tuple[Figure, int]]) -> Table:
    rows = [
        [
            one.base,
            str(one.sessions),
            f"{one.base_bytes / 1e6:.0f}",
            f"{one.resident_bytes / 1e6:.0f}",
            f"{one.peak_bytes / 1e6:.0f}",
            f"{one.snapshot_bytes / one.sessions / 1e6:.1f}",
            f"{grown / 1e6:.0f}",
            goal(f"< {GOAL_MB} MB", one.peak_bytes < GOAL_MB * 1e6) if one.base == SHARED else "",
        ]
        for one, grown in figures
    ]
    head = ["base", "sessions", "MB of base", "MB in the worker", "MB at its peak", "MB a snapshot"]
    return Table("Sessions over one frozen base", [*head, "MB that Redis grew", "goal"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frozen", description=__doc__)
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--serve", nargs=2, metavar=("STORE", "BASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        torch.set_num_threads(1)
        answer(asdict(asyncio.run(_serve(options.serve[0], options.sessions, options.serve[1]))))
        return
    began = show_about()
    figures = []
    for base in (SHARED, COPIES):
        with services() as running:
            asyncio.run(_submit(running.store))
            figures.append(measure(running, options.sessions, base))
    table = table_of(figures)
    table.show()
    save("frozen", [{**asdict(one), "redis_grew": grown} for one, grown in figures], [table], began)


async def _submit(url: str) -> None:
    store = await open_store(url)
    await store_job(store, job())
    await store.close()


if __name__ == "__main__":
    main()
