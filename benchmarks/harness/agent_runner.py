"""Our device agent as a contestant in a benchmark.

    python -m benchmarks.harness.agent_runner WORKLOAD JOB BROKER STATE [DEVICE]

It is the agent as it is, but for a gate before its computations, which opens for a lap and closes after
the lap's last step.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.harness.timed_runs import answer, resident_bytes
from broker import connect
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from device_agent.observations import Observation, StepTaken
from spliteasy.observability import logs
from spliteasy.runtime.event_loop import new_runner
from spliteasy.runtime.torch_thread import TorchThread

T = TypeVar("T")


class Gate:
    """A `Compute` that waits while the gate is closed."""

    def __init__(self) -> None:
        self.thread = TorchThread()
        self._open = asyncio.Event()
        self._open.set()
        self._left = 0
        self._began = 0.0
        self._seconds: list[float] = []
        self.last: StepTaken | None = None
        self._done = asyncio.Event()

    async def __call__(self, run: Callable[[], T]) -> T:
        await self._open.wait()
        return await self.thread(run)

    def observe(self, observation: Observation) -> None:
        """The first step, which waits for the worker to load the session, belongs to no lap."""
        if not isinstance(observation, StepTaken):
            return
        now = time.perf_counter()
        self.last = observation
        if self._left:
            self._seconds.append(now - self._began)
            self._began = now
            self._left -= 1
        if not self._left:
            self._open.clear()
            self._done.set()

    async def lap(self, steps: int) -> list[float]:
        """Seconds of each of so many steps."""
        self._done.clear()
        self._left, self._seconds, self._began = steps, [], time.perf_counter()
        self._open.set()
        await self._done.wait()
        return self._seconds

    async def first_step(self) -> None:
        await self._done.wait()


async def _run(workload: str, job: str, broker: str, state: str, device: str) -> None:
    gate, stop = Gate(), asyncio.Event()
    resident = resident_bytes(os.getpid())  # before there is a session
    config = AgentConfig(
        job=job,
        device=device,
        data=f"benchmarks.harness.workloads:data_{workload.lower()}",
        state=Path(state),
    )
    agent = Agent(config, connect=lambda: connect(broker), compute=gate, observe=gate.observe)
    running = asyncio.create_task(agent.run(stop))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await asyncio.wait({running, asyncio.create_task(gate.first_step())}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    assert gate.last is not None
    answer({"step": gate.last.step, "resident": resident})
    while line := await reader.readline():
        before = gate.last
        seconds = await gate.lap(int(line))
        after = gate.last
        answer(
            {
                "seconds": seconds,
                "up": after.bytes_up - before.bytes_up,
                "down": after.bytes_down - before.bytes_down,
                "step": after.step,
                "loss": after.loss,
            }
        )
    running.cancel()
    await asyncio.wait({running})
    gate.thread.close()


def main() -> None:
    torch.set_num_threads(1)
    logs.configure("warning")
    workload, job, broker, state, *device = sys.argv[1:]
    with new_runner() as runner:
        runner.run(_run(workload, job, broker, state, *(device or ["phone-1"])))


if __name__ == "__main__":
    main()
