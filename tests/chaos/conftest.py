"""A stack for a module's tests, and devices on it. All of a module runs in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from server_worker.store import open_store
from tests.chaos import toy
from tests.chaos.device import PROFILE, Device
from tests.chaos.judge import judge
from tests.chaos.record import Record
from tests.chaos.scene import Scene, until
from tests.chaos.stack import Stack

BEGINS_S = 120.0
_NUMBERS = count()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """RabbitMQ, Redis (`everysec`) and two workers, ended after the module."""
    async with Stack(Path(tmp_path_factory.mktemp("chaos")), Record(), workers=2) as running:
        yield running


class Trained:
    """A device whose agent runs, on a stack where nothing has gone wrong yet."""

    def __init__(self, stack: Stack, device: Device) -> None:
        self.stack = stack
        self.device = device
        self.scene = Scene(stack, [device])
        self.task = self._begin()

    def _begin(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.device.run(lambda: not self.device.finished))

    async def start_again(self) -> None:
        """Start the agent again where it has ended."""
        await self.task
        self.task = self._begin()

    @property
    def job(self) -> str:
        return self.device.session.partition(".")[0]

    @property
    def steps(self) -> int:
        """The newest step that was taken."""
        if self.device.training is None:
            return 0
        return self.stack.record.newest[self.device.session]

    async def reach(self, step: int) -> None:
        assert await until(lambda: self.steps >= step or self.task.done(), BEGINS_S)
        assert self.steps >= step, self.stack.record.violations

    async def end(self) -> None:
        """Stop it wherever it is."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if self.device.agent is not None:
            await self.device.agent.kill()

    async def finish(self) -> None:
        """Wait for the last step; then the bits must be those of the undisturbed training."""
        await self.task
        assert self.stack.record.violations == []
        store = await open_store(self.stack.redis.url)
        try:
            (training,) = self.device.finished
            differences = await judge(store, [(training, self.device.state_of(training))])
        finally:
            await store.close()
        assert set(differences.values()) == {0.0}


async def new_training(stack: Stack, job: str = toy.TWO_CUTS) -> Trained:
    """A device that no test has used begins to train."""
    number = next(n for n in _NUMBERS if toy.JOBS[n % len(toy.JOBS)] == job)
    link = await stack.link(ports=2)
    link.set_profile(PROFILE)
    return Trained(stack, Device(slot=0, first=number + 1, stack=stack, link=link, port=link.port))


NewTraining = Callable[..., Awaitable[Trained]]


@pytest_asyncio.fixture(loop_scope="module")
async def train(stack: Stack) -> AsyncIterator[NewTraining]:
    """`await train(job)`: a device that no test has used trains, and has taken its first steps."""
    begun: list[Trained] = []
    stack.record = Record()
    for slot in stack.workers:
        if not slot.running:
            await stack.start_worker(slot)

    async def start(job: str = toy.TWO_CUTS) -> Trained:
        training = await new_training(stack, job)
        begun.append(training)
        await training.reach(3)
        return training

    yield start
    for training in begun:
        await training.end()
