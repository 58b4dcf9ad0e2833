"""A broker that refuses for a while, in every way that RabbitMQ knows: agent and worker stay, and go on.

The broker is a node of its own, since its virtual hosts and accounts are stopped and changed. Each fault
ends when both have met it several times.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker import Transport, connect
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from device_agent.observations import Observation, StepTaken
from server_worker.config import Trust, WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.store import SqliteStore, StoredJob
from server_worker.worker import Worker
from spliteasy.errors import LinkDeferred, LinkError, LinkRefused
from spliteasy.runtime.torch_thread import TorchThread
from tests.fixtures_rabbitmq import PASSWORD, RabbitBroker, new_node
from tests.simulation import toy

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(120)]

VARIANT = toy.Variant(epochs=100_000)
DEVICE, WORKER = "phone-1", "worker-1"
ENOUGH = 3
"""Attempts of each that meet a fault."""


@pytest.fixture(scope="module")
def node_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitBroker]:
    node = new_node(tmp_path_factory.mktemp("staying"))
    node.start()
    yield RabbitBroker(node=node)
    node.kill()


@dataclass
class Scene:
    """A virtual host with accounts for a device and a worker, and what may be done to them."""

    broker: RabbitBroker
    vhost: str
    limits: list[str] = field(default_factory=list)

    def reach(self, name: str) -> Reach:
        """Return how that account connects, with the password that it was given at first."""
        return Reach(replace(self.broker.node, user=name, password=PASSWORD).url(self.vhost))

    def connections_closed(self) -> None:
        for name in (DEVICE, WORKER):
            self.broker.call("DELETE", f"connections/username/{name}")

    def vhost_stops(self) -> None:
        name = f'<<"{self.vhost}">>'
        self.broker.node.ctl("eval", f"rabbit_vhost_sup_sup:stop_and_delete_vhost({name}).")

    def channels_die(self) -> None:
        self.broker.node.ctl("eval", "[exit(Pid, kill) || Pid <- rabbit_channel:list_local()].")

    def vhost_starts(self) -> None:
        self.broker.node.ctl("restart_vhost", "--vhost", self.vhost)

    def permissions_taken(self) -> None:
        for name in (DEVICE, WORKER):
            self.broker.call("DELETE", f"permissions/{self.vhost}/{name}")
        self.connections_closed()

    def permissions_emptied(self) -> None:
        for name in (DEVICE, WORKER):
            self.broker.permit(self.vhost, name, configure="^$", write="^$", read="^$")
        self.connections_closed()

    def permissions_given(self) -> None:
        for name in (DEVICE, WORKER):
            self.broker.permit(self.vhost, name)

    def no_connection_more(self) -> None:
        self._limit(f"vhost-limits/{self.vhost}/max-connections")
        self.connections_closed()

    def no_queue_more(self) -> None:
        """Reply queues are new for each connection; the worker's queues are there."""
        self._limit(f"vhost-limits/{self.vhost}/max-queues")
        self.connections_closed()

    def no_account_has_a_connection_more(self) -> None:
        self._limit(*(f"user-limits/{name}/max-connections" for name in (DEVICE, WORKER)))
        self.connections_closed()

    def no_account_has_a_channel_more(self) -> None:
        self._limit(*(f"user-limits/{name}/max-channels" for name in (DEVICE, WORKER)))
        self.connections_closed()

    def no_limit(self) -> None:
        for path in self.limits:
            self.broker.call("DELETE", path)

    def passwords_change(self) -> None:
        self._passwords("another")
        self.connections_closed()

    def passwords_are_back(self) -> None:
        self._passwords(PASSWORD)

    def application_stops(self) -> None:
        self.broker.node.ctl("stop_app")

    def application_starts(self) -> None:
        self.broker.node.ctl("start_app")

    def _passwords(self, password: str) -> None:
        for name in (DEVICE, WORKER):
            self.broker.call("PUT", f"users/{name}", {"password": password, "tags": ""})

    def _limit(self, *paths: str) -> None:
        for path in paths:
            self.broker.call("PUT", path, {"value": 0})
        self.limits.extend(paths)


class Reach:
    """The way by which one of them connects: each attempt is counted."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._attempts = 0
        self._more = asyncio.Condition()

    async def __call__(self) -> Transport:
        async with self._more:
            self._attempts += 1
            self._more.notify_all()
        return await connect(self._url)

    async def again(self, times: int) -> None:
        """Return when so many more attempts have begun."""
        wanted = self._attempts + times
        async with self._more:
            await self._more.wait_for(lambda: self._attempts >= wanted)


@pytest.fixture
async def scene(node_of_our_own: RabbitBroker) -> AsyncIterator[Scene]:
    vhost = node_of_our_own.new_vhost()
    for name in (DEVICE, WORKER):
        node_of_our_own.account_url(vhost, name)
    yield Scene(node_of_our_own, vhost)
    await asyncio.to_thread(node_of_our_own.delete_vhost, vhost)


@asynccontextmanager
async def serving(reach: Reach, **settings: float) -> AsyncIterator[asyncio.Task[None]]:
    store, job, thread = SqliteStore(None, inline=True), toy.job(VARIANT), TorchThread()
    await store.put_job(StoredJob(name="toy", digest=job.digest, manifest=job.manifest, parts=job.parts))
    config = WorkerConfig(name=WORKER, trust=Trust.OPEN, **settings)  # type: ignore[arg-type]
    stop = asyncio.Event()
    running = asyncio.create_task(
        Worker(config, connect=reach, store=store, engine=LocalEngine(thread)).run(stop)
    )
    try:
        yield running
    finally:
        stop.set()
        with suppress(LinkError):
            await running
        thread.close()
        await store.close()


class Training:
    """An agent in a training without end; the steps that it took are noted."""

    def __init__(self, folder: Path, reach: Reach, **settings: float) -> None:
        self.steps: list[int] = []
        self._stop = asyncio.Event()
        self._more = asyncio.Condition()
        state = folder / "state"
        self._config = AgentConfig(job="toy", device=DEVICE, data=toy.DATA, state=state, **settings)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self._run(reach))

    async def _run(self, reach: Reach) -> None:
        thread = TorchThread()
        try:
            await Agent(self._config, connect=reach, compute=thread, observe=self._note).run(self._stop)
        finally:
            thread.close()
            async with self._more:
                self._more.notify_all()

    def _note(self, told: Observation) -> None:
        if isinstance(told, StepTaken):
            self.steps.append(told.step)
            self._told = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        async with self._more:
            self._more.notify_all()

    async def more(self) -> None:
        """Return when it has taken some more steps."""
        wanted = len(self.steps) + 5
        async with self._more:
            await self._more.wait_for(lambda: len(self.steps) >= wanted or self.task.done())
        if self.task.done():
            self.task.result()

    async def end(self) -> None:
        """Stop it; each step must have been taken once."""
        self._stop.set()
        await self.task
        assert self.steps == list(range(1, len(self.steps) + 1))


FAULTS = {
    "virtual host stopped": (Scene.vhost_stops, Scene.vhost_starts),
    "no permission for the virtual host": (Scene.permissions_taken, Scene.permissions_given),
    "no permission in the virtual host": (Scene.permissions_emptied, Scene.permissions_given),
    "connection limit of the virtual host": (Scene.no_connection_more, Scene.no_limit),
    "queue limit of the virtual host": (Scene.no_queue_more, Scene.no_limit),
    "connection limit of the account": (Scene.no_account_has_a_connection_more, Scene.no_limit),
    "channel limit of the account": (Scene.no_account_has_a_channel_more, Scene.no_limit),
    "password changed": (Scene.passwords_change, Scene.passwords_are_back),
    "broker stopped": (Scene.application_stops, Scene.application_starts),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_agent_and_worker_wait_out_what_the_broker_says(
    scene: Scene, tmp_path: Path, no_loop_errors: None, fault: str
) -> None:
    begin, end = FAULTS[fault]
    device, worker = scene.reach(DEVICE), scene.reach(WORKER)
    async with asyncio.timeout(60), serving(worker) as working:
        training = Training(tmp_path, device)
        await training.more()
        met = [asyncio.create_task(device.again(ENOUGH))]
        if begin is not Scene.no_queue_more:
            met.append(asyncio.create_task(worker.again(ENOUGH)))
        await asyncio.to_thread(begin, scene)
        await asyncio.gather(*met)
        assert not working.done()
        await asyncio.to_thread(end, scene)
        await training.more()
        await training.end()


async def test_a_deleted_account_ends_agent_and_worker_as_refused(scene: Scene, tmp_path: Path) -> None:
    async with asyncio.timeout(30), serving(scene.reach(WORKER)) as working:
        training = Training(tmp_path, scene.reach(DEVICE))
        await training.more()
        for name, task in ((DEVICE, training.task), (WORKER, working)):
            await asyncio.to_thread(scene.broker.call, "DELETE", f"users/{name}")
            with pytest.raises(LinkRefused, match="refused the account"):
                await task


async def test_a_limit_ends_the_waiting(scene: Scene, tmp_path: Path) -> None:
    async with asyncio.timeout(30), serving(scene.reach(WORKER), give_up_s=0.5) as working:
        training = Training(tmp_path, scene.reach(DEVICE), give_up_s=0.5)
        await training.more()
        await asyncio.to_thread(scene.no_connection_more)
        for task in (training.task, working):
            with pytest.raises(LinkDeferred, match="connection limit"):
                await task


async def test_a_first_connection_waits_for_a_virtual_host_that_is_still_starting(
    scene: Scene, tmp_path: Path
) -> None:
    device, worker = scene.reach(DEVICE), scene.reach(WORKER)
    await asyncio.to_thread(scene.vhost_stops)
    async with asyncio.timeout(30), serving(worker):
        met = asyncio.gather(device.again(ENOUGH), worker.again(ENOUGH))
        training = Training(tmp_path, device)
        await met
        await asyncio.to_thread(scene.vhost_starts)
        await training.more()
        await training.end()


async def test_an_internal_error_at_the_first_connection_can_pass(scene: Scene) -> None:
    """RabbitMQ answers so (541) while the virtual host is down."""
    await asyncio.to_thread(scene.vhost_stops)
    with pytest.raises(LinkDeferred, match=r"takes no connections now: INTERNAL_ERROR.*is down"):
        await scene.reach(DEVICE)()


async def test_an_internal_error_under_a_connection_is_waited_out(scene: Scene, tmp_path: Path) -> None:
    """The broker's channels die of a bug, or an operator's hand: it closes their connections with 541."""
    device, worker = scene.reach(DEVICE), scene.reach(WORKER)
    async with asyncio.timeout(60), serving(worker) as working:
        training = Training(tmp_path, device)
        await training.more()
        met = asyncio.gather(device.again(1), worker.again(1))
        with capture_logs() as logs:
            await asyncio.to_thread(scene.channels_die)
            await met
            await training.more()
        assert not working.done()
        assert any("INTERNAL_ERROR" in str(entry) for entry in logs)
        await training.end()


async def test_a_wrong_password_at_first_is_final_at_once(scene: Scene, tmp_path: Path) -> None:
    scene.passwords_change()
    async with asyncio.timeout(20), serving(scene.reach(WORKER)) as working:
        for task in (Training(tmp_path, scene.reach(DEVICE)).task, working):
            with pytest.raises(LinkRefused, match="refused the account"):
                await task
