"""Broker, store, workers and agents within this process: what `train`, `parity` and `predict` can run on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from broker import Transport
from broker.transport.in_process import MemoryBroker
from device_agent.agent import Agent, AgentResult
from device_agent.config import AgentConfig
from device_agent.link.link import Connect
from server_worker.config import Trust, WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.placement.queue_type import settle_queue_type
from server_worker.placement.shards import settle_shards
from server_worker.store import Store
from server_worker.worker import Worker
from spliteasy.runtime.torch_thread import Compute, TorchThread

DEVICE_THREADS = 4
"""The torch threads that the devices of this process share at most."""

ConnectAs = Callable[[str], Awaitable[Transport]]
"""Connects as the principal named."""


@asynccontextmanager
async def workers_running(
    count: int,
    store: Store,
    connect: ConnectAs,
    *,
    trust: Trust,
    config: WorkerConfig | None = None,
    **parts: Any,
) -> AsyncIterator[Sequence[Worker]]:
    """Let `count` workers of this process serve while the context is entered; they drain at the end.

    `connect` is called with a worker's name. `config` has their settings but for name, trust, shards and
    type of queues; `parts` are further arguments of each `Worker`. What ends a worker (LinkRefused, a bug)
    cancels the body of the `async with`, and is raised.
    """
    settings = config or WorkerConfig(name="worker")
    stop = asyncio.Event()
    computes = [TorchThread(f"worker-{n + 1}") for n in range(count)]
    try:
        queues = await settle_queue_type(store, None)
        shards = await settle_shards(store, None)
        workers = []
        async with asyncio.TaskGroup() as group:
            for number, compute in enumerate(computes, start=1):
                name = f"worker-{number}"
                worker = Worker(
                    replace(settings, name=name, trust=trust, shards=shards, queues=queues),
                    connect=partial(connect, name),
                    store=store,
                    engine=LocalEngine(compute),
                    **parts,
                )
                workers.append(worker)
                group.create_task(worker.run(stop))
                await worker.connected.wait()
            try:
                yield workers
            finally:
                stop.set()
    finally:
        for compute in computes:
            compute.close()


async def run_agent(
    config: AgentConfig, connect: Connect, *, stop: asyncio.Event | None = None, **parts: Any
) -> tuple[AgentResult, Agent]:
    """Run an agent in a torch thread of its own, to its end or until `stop` is set.

    `parts` are further arguments of `Agent`. What it raises is raised.
    """
    compute = TorchThread(config.device)
    try:
        agent = Agent(config, connect=connect, **{"compute": compute, **parts})
        return await agent.run(stop or asyncio.Event()), agent
    finally:
        compute.close()


@contextmanager
def shared_threads(devices: int) -> Iterator[Callable[[int], Compute]]:
    """Give device number n of this process the torch thread that it shares with others.

    A thread a device would let a thousand threads fight for the interpreter. A few more than there are
    processors take turns while others wait for the disk.
    """
    threads = [TorchThread(f"devices-{n + 1}") for n in range(min(devices, DEVICE_THREADS))]
    try:
        yield lambda number: threads[number % len(threads)]
    finally:
        for thread in threads:
            thread.close()


def async_connect(broker: MemoryBroker) -> ConnectAs:
    """The in-process broker's `connect`, as a coroutine function of the principal."""

    async def connect(principal: str) -> Transport:
        return broker.connect(principal)

    return connect
