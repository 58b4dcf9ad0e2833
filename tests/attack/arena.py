"""The arena of attacks: a real RabbitMQ, accounts as `spliteasy device enroll` makes them, a worker that
trusts only those, and devices that train meanwhile and must end bit-identical."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import torch
from pydantic import SecretStr

from deploy.accounts import Accounts, Role
from deploy.nodes.native import HOST
from deploy.nodes.rabbitmq import RabbitNode
from device_agent.agent import Agent, AgentResult
from device_agent.config import AgentConfig
from device_agent.link.link import Connect
from device_agent.observations import Observation, StepTaken
from server_worker.config import WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.store import SqliteStore, StoredJob
from server_worker.worker import Worker
from spliteasy.runtime.torch_thread import TorchThread
from spliteasy_cli.support.enrolment import Enrolment, certificates, connect_enrolled, read_enrolment
from tests.drawn import SECRET
from tests.simulation import toy

PATIENCE_S = 0.2


def management_url(node: RabbitNode) -> str:
    """Return the URL of the management API of a node that has the plugin."""
    url = f"{node.user}:{node.password}@{HOST}:{node.management_port}"
    return f"https://{url}?cafile={node.tls.ca}" if node.tls else f"http://{url}"


@dataclass(kw_only=True)
class Arena:
    """One virtual host with a worker that serves the toy job."""

    node: RabbitNode
    vhost: str
    folder: Path
    accounts: Accounts
    variant: toy.Variant
    store: SqliteStore
    worker: Worker
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def new_device(self) -> str:
        """An enrolled device that nobody else is."""
        device = f"phone-{next(self._numbers)}"
        self.enroll(device)
        return device

    def enroll(self, name: str, role: Literal["device", "worker"] = "device") -> Enrolment:
        """Make the account and write its file, as the command does."""
        return _enroll(self.accounts, self.node, self.vhost, self.folder, name, role)

    def file(self, device: str) -> Path:
        """The device's enrolment."""
        return self.folder / f"{device}.enrol"

    def url(self, device: str) -> str:
        """The broker's URL with the device's account."""
        return read_enrolment(self.file(device)).url

    def password(self, device: str) -> str:
        """Return the password of the device's account."""
        return read_enrolment(self.file(device)).password.get_secret_value()

    async def train(
        self,
        device: str,
        *,
        observe: Callable[[Observation], None] = lambda _: None,
        stop: asyncio.Event | None = None,
        connect: Connect | None = None,
    ) -> AgentResult:
        """A whole training of an enrolled device, which connects by its enrolment or as `connect` does.

        Raises what the agent does, and AssertionError where it ended with other bits than without a wire.
        """
        compute = TorchThread()
        agent = Agent(
            AgentConfig(
                job="toy", device=device, data=toy.DATA, secret=SECRET, state=self.folder / f"{device}-state"
            ),
            connect=connect or (lambda: connect_enrolled(self.file(device), patience_s=PATIENCE_S)),
            compute=compute,
            observe=observe,
        )
        try:
            result = await agent.run(stop or asyncio.Event())
        finally:
            compute.close()
        if result.done:
            assert agent.trainer is not None
            expected, found = toy.undisturbed(device, self.variant)[0], agent.trainer.state()
            assert expected.keys() == found.keys()
            different = [name for name in expected if not torch.equal(expected[name], found[name])]
            assert not different, f"{device} trained to other bits: {different}"
        return result

    async def train_until(self, device: str, step: int) -> asyncio.Task[AgentResult]:
        """Start a training; return when it has taken that many steps."""
        reached = asyncio.Event()

        def observe(progress: Observation) -> None:
            if isinstance(progress, StepTaken) and progress.step >= step:
                reached.set()

        task = asyncio.create_task(self.train(device, observe=observe))
        waiting = asyncio.create_task(reached.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            task.result()
        return task


@asynccontextmanager
async def open_arena(
    node: RabbitNode, vhost: str, folder: Path, *, variant: toy.Variant | None = None, **settings: object
) -> AsyncIterator[Arena]:
    """An arena on a running node with the management plugin. `settings` change the worker's configuration."""
    variant = variant or toy.Variant()
    accounts = Accounts(management_url(node), vhost=vhost)
    _enroll(accounts, node, vhost, folder, "workers", "worker")
    store = SqliteStore(None, inline=True)
    job = toy.job(variant)
    await store.put_job(StoredJob(name="toy", digest=job.digest, manifest=job.manifest, parts=job.parts))
    compute = TorchThread()
    worker = Worker(
        replace(WorkerConfig(name="worker"), **settings),  # type: ignore[arg-type]
        connect=lambda: connect_enrolled(folder / "workers.enrol", role="worker", patience_s=PATIENCE_S),
        store=store,
        engine=LocalEngine(compute),
    )
    stop = asyncio.Event()
    serving = asyncio.create_task(worker.run(stop))
    connected = asyncio.create_task(worker.connected.wait())
    await asyncio.wait({serving, connected}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    arena = Arena(
        node=node, vhost=vhost, folder=folder, accounts=accounts, variant=variant, store=store, worker=worker
    )
    try:
        yield arena
    finally:
        stop.set()
        with suppress(asyncio.CancelledError):
            await serving
        compute.close()
        await store.close()
        for account in accounts.list():
            accounts.revoke(account.name)


def _enroll(
    accounts: Accounts,
    node: RabbitNode,
    vhost: str,
    folder: Path,
    name: str,
    role: Literal["device", "worker"],
) -> Enrolment:
    broker = f"{'amqps' if node.tls else 'amqp'}://{HOST}:{node.port}/{quote(vhost, safe='')}"
    ca = certificates(node.tls.ca) if node.tls else None
    password = secrets.token_urlsafe(32)
    enrolment = Enrolment(role=role, account=name, password=SecretStr(password), broker=broker, ca=ca)
    enrolment.write(
        folder / f"{name}.enrol", before=lambda: accounts.enroll(name, Role[role.upper()], password)
    )
    return enrolment
