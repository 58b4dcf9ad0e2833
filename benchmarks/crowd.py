"""The two processes of `benchmarks.many`: a worker that knows how long it computed, and many agents.

    python -m benchmarks.crowd worker BROKER STORE
    python -m benchmarks.crowd devices JOB BROKER STATE COUNT

Each answers a line of standard input by a line of JSON: the worker with its computing so far, the devices
with the steps that each took in so many seconds from then on.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.laps import answer
from broker import connect
from device_agent.agent import Agent, AgentConfig
from device_agent.observe import Observation, StepTaken
from server_worker.config import Trust, WorkerConfig
from server_worker.store import open_store
from server_worker.worker import Worker
from spliteasy import logs
from spliteasy.compute import TorchThread
from spliteasy.eventloop import new_runner

T = TypeVar("T")
WARM_STEPS = 2


class Watched:
    """A torch thread that counts its time, by the wall and by the processor."""

    def __init__(self) -> None:
        self._thread = TorchThread()
        self.computing_s = self.processor_s = 0.0

    async def __call__(self, run: Callable[[], T]) -> T:
        return await self._thread(lambda: self._timed(run))

    def _timed(self, run: Callable[[], T]) -> T:
        began, processor = time.perf_counter(), time.thread_time()
        try:
            return run()
        finally:
            self.computing_s += time.perf_counter() - began
            self.processor_s += time.thread_time() - processor


async def _input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def _worker(broker: str, store: str) -> None:
    compute, stop = Watched(), asyncio.Event()
    worker = Worker(
        WorkerConfig(trust=Trust.OPEN),
        connect=lambda: connect(broker),
        store=await open_store(store),
        compute=compute,
    )
    running = asyncio.create_task(worker.run(stop))
    await worker.connected.wait()
    answer("ready")
    reader = await _input()
    while await reader.readline():
        answer(
            {
                "at": time.perf_counter(),
                "computing_s": compute.computing_s,
                "processor_s": compute.processor_s,
            }
        )
    running.cancel()
    await asyncio.wait({running})


async def _devices(job: str, broker: str, state: str, count: int) -> None:
    """All agents compute in one thread: their part is small, and a phone's would be its own."""
    steps: Counter[str] = Counter()
    compute, warm = TorchThread(), asyncio.Event()

    def observe(observation: Observation) -> None:
        if isinstance(observation, StepTaken):
            steps[observation.device] += 1
            if len(steps) == count and min(steps.values()) >= WARM_STEPS:
                warm.set()

    tasks = []
    for number in range(1, count + 1):
        device = f"phone-{number}"
        config = AgentConfig(
            job=job,
            device=device,
            data="benchmarks.workloads:data_w0",
            state=Path(state) / device,
            patience_s=60.0,
        )
        agent = Agent(config, connect=lambda: connect(broker), compute=compute, observe=observe)
        tasks.append(asyncio.create_task(agent.run(asyncio.Event())))
    ready = asyncio.create_task(warm.wait())
    done, _ = await asyncio.wait({ready, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in done - {ready}:
        task.result()  # raises what ended it
    answer("ready")
    reader = await _input()
    while line := await reader.readline():
        before = Counter(steps)
        await asyncio.sleep(float(line))
        answer({"steps": [steps[f"phone-{n}"] - before[f"phone-{n}"] for n in range(1, count + 1)]})
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def main() -> None:
    torch.set_num_threads(1)
    logs.configure("error")
    role, *arguments = sys.argv[1:]
    with new_runner() as runner:
        if role == "worker":
            runner.run(_worker(*arguments))
        else:
            job, broker, state, count = arguments
            runner.run(_devices(job, broker, state, int(count)))


if __name__ == "__main__":
    main()
