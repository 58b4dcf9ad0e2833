"""The processes of `benchmarks.many` and `scale`: a worker that knows how long it computed, and many agents.

    python -m benchmarks.harness.load worker BROKER STORE [WAIT_MS]
    (WAIT_MS: the time that its bodies wait in each step beside computing)
    python -m benchmarks.harness.load devices JOB BROKER STATE phone-1,phone-2 DATA
    (DATA: the name of a function of `benchmarks.harness.workloads`)

Each answers a line of standard input by a line of JSON: the worker with its computing so far, the devices
with the steps that each took in so many seconds from then on.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.harness.timed_runs import answer
from broker import connect
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from device_agent.observations import Observation, StepTaken
from server_worker.config import Trust, WorkerConfig
from server_worker.engine.body_trainer import BodyTrainer
from server_worker.engine.local import LocalEngine
from server_worker.store import open_store
from server_worker.worker import Worker
from spliteasy.observability import logs
from spliteasy.runtime.event_loop import new_runner
from spliteasy.runtime.torch_thread import TorchThread

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


class Waits:
    """Makes computations take longer: a sleep holds neither a core nor the interpreter."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Asked for so far; what a sleep takes beyond that is none of it."""

    def before(self, run: Callable[..., T], wait_s: float) -> Callable[..., T]:
        @wraps(run)
        def waits(*args: Any) -> T:
            time.sleep(wait_s)
            self.seconds += wait_s
            return run(*args)

        return waits


async def _worker(broker: str, store: str, wait_ms: str = "0") -> None:
    compute, waits, stop = Watched(), Waits(), asyncio.Event()
    if half_s := float(wait_ms) / 2000:
        BodyTrainer.forward = waits.before(BodyTrainer.forward, half_s)  # type: ignore[method-assign]
        BodyTrainer.backward = waits.before(BodyTrainer.backward, half_s)  # type: ignore[method-assign]
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    worker = Worker(
        WorkerConfig(trust=Trust.OPEN),
        connect=lambda: connect(broker),
        store=await open_store(store),
        engine=LocalEngine(compute),
    )
    running = asyncio.create_task(worker.run(stop))
    await worker.connected.wait()
    answer("ready")
    telling = asyncio.create_task(_tell(compute, waits))
    await running
    telling.cancel()


async def _tell(compute: Watched, waits: Waits) -> None:
    reader = await _input()
    while await reader.readline():
        answer(
            {
                "at": time.perf_counter(),
                "computing_s": compute.computing_s,
                "processor_s": compute.processor_s,
                "waited_s": waits.seconds,
            }
        )


async def _devices(job: str, broker: str, state: str, names: list[str], data: str) -> None:
    """All agents compute in one thread: their part is small, and a phone's would be its own."""
    steps: Counter[str] = Counter()
    compute, warm = TorchThread(), asyncio.Event()

    def observe(observation: Observation) -> None:
        if isinstance(observation, StepTaken):
            steps[observation.device] += 1
            if len(steps) == len(names) and min(steps.values()) >= WARM_STEPS:
                warm.set()

    tasks = []
    for device in names:
        config = AgentConfig(
            job=job,
            device=device,
            data=f"benchmarks.harness.workloads:{data}",
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
        answer({"steps": [steps[name] - before[name] for name in names]})
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
            job, broker, state, names, data = arguments
            runner.run(_devices(job, broker, state, names.split(","), data))


if __name__ == "__main__":
    main()
