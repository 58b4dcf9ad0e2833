"""Workers as processes and devices in this one, on a broker and a store that can be hurt.

For what is measured in seconds after a fault: who serves which session, and when each took its last step.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import orjson

from benchmarks.emulator import LinkEmulator
from benchmarks.harness.services import ROOT, Services
from benchmarks.harness.submission import submit
from benchmarks.harness.timed_runs import ALLOCATOR, ONE_THREAD
from benchmarks.harness.workloads import W0
from broker import connect
from deploy.nodes.native import HOST
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from device_agent.observations import Observation, StepTaken
from spliteasy.runtime.torch_thread import TorchThread

JOB = "recovery"
POLL_S = 0.01
READY_S = 120.0
SETTLED_S = 1.5
"""Nobody loaded a session for so long: placement has come to rest."""


@dataclass(slots=True)
class WorkerPlace:
    """A worker that comes and goes, and its link to the broker."""

    number: int
    link: LinkEmulator
    process: asyncio.subprocess.Process | None = None
    serving: bool = False
    ready: set[str] = field(default_factory=set)
    """Jobs whose program it has loaded."""
    log: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """The lines that it printed, each with its time."""

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)


class Arena:
    """`async with Arena(services, sessions=4) as arena`: two workers serve devices that never finish."""

    def __init__(self, running: Services, *, sessions: int) -> None:
        self.services = running
        self.workers: list[WorkerPlace] = []
        self.owner: dict[str, int] = {}
        """The worker that loaded each session last."""
        self.loaded_at: dict[str, float] = {}
        self.replayed = 0
        self.steps: dict[str, int] = {}
        self.stepped_at: dict[str, float] = {}
        self.devices = [f"phone-{number + 1}" for number in range(sessions)]
        self._struck_at = 0.0
        self._next_step_at: dict[str, float | None] = {}
        """The next steps of the sessions that the last fault has hit; None: not yet."""
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Arena:
        submit_job = {**W0.job(JOB), "durability": {"snapshot_every_steps": 50, "checkpoint_every": 10}}
        await asyncio.to_thread(submit, submit_job, self.services.store)
        for number in range(2):
            link = await self._stack.enter_async_context(LinkEmulator((HOST, self.services.rabbitmq.port)))
            self.workers.append(WorkerPlace(number, link))
        self.device_link = await self._stack.enter_async_context(
            LinkEmulator((HOST, self.services.rabbitmq.port))
        )
        await asyncio.gather(*map(self.start, self.workers))
        await asyncio.to_thread(self.services.rabbitmq.sync_queues)
        for device in self.devices:
            self._tasks.append(asyncio.create_task(self._train(device)))
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for place in self.workers:
            await self.kill(place)
        await self._stack.aclose()

    # what faults use

    async def start(self, place: WorkerPlace) -> None:
        """Start it and wait until it serves."""
        broker = self._through(place.link)
        place.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "spliteasy_cli", "worker", "--name", f"worker-{place.number}"),
            *("--trust", "open", "--broker", broker, "--store", self.services.store),
            cwd=ROOT,
            env={**os.environ, **ALLOCATOR, **ONE_THREAD, "PYTHONPATH": str(ROOT)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        place.serving = False
        place.ready.clear()
        self._tasks.append(asyncio.create_task(self._listen(place, place.process)))
        await until(lambda: place.serving)

    async def kill(self, place: WorkerPlace) -> None:
        """Kill the process with SIGKILL, and wait until it is gone."""
        if place.process is not None and place.process.returncode is None:
            place.process.kill()
            await place.process.wait()

    def sessions_of(self, place: WorkerPlace) -> list[str]:
        return [session for session, number in self.owner.items() if number == place.number]

    async def settled(self) -> None:
        """Wait until all sessions step, every worker serves some, has the program, and nothing moves."""

        def rests() -> bool:
            now = monotonic()
            return (
                len(self.owner) == len(self.devices)
                and set(self.owner.values()) == {place.number for place in self.workers}
                and all(now - at > SETTLED_S for at in self.loaded_at.values())
                and all(
                    now - self.stepped_at.get(f"{JOB}.{device}", 0) < SETTLED_S / 3 for device in self.devices
                )
            )

        await until(rests)

    def strike(self, sessions: list[str]) -> None:
        """A fault comes now: begin to wait for the next step of each of these sessions."""
        self._struck_at = monotonic()
        self._next_step_at = dict.fromkeys(sessions)

    async def moved(self) -> list[float]:
        """Seconds from the strike to each session's next step, once all have one."""
        await until(lambda: None not in self._next_step_at.values())
        return [at - self._struck_at for at in self._next_step_at.values() if at is not None]

    # inside

    async def _train(self, device: str) -> None:
        session, thread = f"{JOB}.{device}", TorchThread()

        def observe(seen: Observation) -> None:
            if isinstance(seen, StepTaken):
                self.steps[session], self.stepped_at[session] = seen.step, monotonic()
                if self._next_step_at.get(session, 0.0) is None:
                    self._next_step_at[session] = monotonic()

        state = Path(self.services.folder) / f"{device}.state"
        config = AgentConfig(job=JOB, device=device, data="benchmarks.harness.workloads:data_w0", state=state)
        url = self._through(self.device_link)
        await Agent(config, connect=lambda: connect(url), compute=thread, observe=observe).run(
            asyncio.Event()
        )

    async def _listen(self, place: WorkerPlace, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            if not line.startswith(b"{"):
                continue
            said = orjson.loads(line)
            place.log.append((monotonic(), said))
            if said["event"] == "serving":
                place.serving = True
            elif said["event"] == "session loaded":
                self.owner[said["session"]] = place.number
                self.loaded_at[said["session"]] = monotonic()
                self.replayed += said["replayed"]

    def _through(self, link: LinkEmulator) -> str:
        rabbitmq = self.services.rabbitmq
        return rabbitmq.url().replace(f":{rabbitmq.port}/", f":{link.port}/")


async def until(condition: Callable[[], bool], timeout_s: float = READY_S) -> None:
    """Wait for it. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (what it looks at changes in too many places to be told)
            await asyncio.sleep(POLL_S)
