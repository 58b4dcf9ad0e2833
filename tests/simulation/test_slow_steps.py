"""A step may take longer than its requests would wait for a commit."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest
import torch

from broker.protocol import messages as m
from broker.transport.in_process import MemoryBroker, MemoryTransport
from broker.transport.topology import reply_queue
from server_worker.config import WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.store import SqliteStore, StoredJob
from server_worker.store.base import PUT_TTL_S
from server_worker.worker import Worker
from tests.simulation import toy
from tests.simulation.clock import run_virtually
from tests.simulation.parts import VirtualCompute
from tests.worker.conftest import ATTEMPT, SESSION, Device

JOB = toy.job(toy.Variant())


@pytest.mark.parametrize(("takes_s", "kept"), [(PUT_TTL_S * 5, True), (PUT_TTL_S * 30, False)])
def test_a_step_slower_than_its_requests_wait_is_committed(takes_s: float, kept: bool) -> None:
    """A device that is not heard of for a day has to send its FORWARD again: its step is open no more."""
    answer = run_virtually(_slow_step(takes_s))
    assert isinstance(answer, m.Gradient if kept else m.Missing)


async def _slow_step(takes_s: float) -> m.AnyMessage:
    loop, stop, broker = asyncio.get_running_loop(), asyncio.Event(), MemoryBroker()
    store = SqliteStore(None, inline=True, clock=loop.time)
    await store.put_job(StoredJob(name="toy", digest=JOB.digest, manifest=JOB.manifest, parts=JOB.parts))

    async def connect() -> MemoryTransport:
        return broker.connect("worker")

    worker = Worker(
        WorkerConfig(name="worker", heartbeat_s=120.0),
        connect=connect,
        store=store,
        engine=LocalEngine(VirtualCompute(random.Random(0))),
        clock=loop.time,
    )
    running = asyncio.create_task(worker.run(stop))
    await worker.connected.wait()
    transport = broker.connect("phone-1")
    queue = reply_queue("phone-1", m.new_nonce())
    await transport.declare(queue)
    device = Device(transport, await transport.subscribe(queue.name, prefetch=10), queue.name, "phone-1")
    opened = m.Open(session=SESSION, attempt=ATTEMPT, digest=JOB.digest, held=(0,))
    assert isinstance(await device.ask(opened), m.Opened)
    forward = m.Forward(
        session=SESSION, attempt=ATTEMPT, step=1, samples=4, oldest_checkpoint=0, values=(torch.ones(4, 5),)
    )
    forwarded = await device.ask(forward)
    assert isinstance(forwarded, m.Forwarded)
    with suppress(TimeoutError):
        async with asyncio.timeout(takes_s):
            await asyncio.Event().wait()
    (output,) = forwarded.values
    assert isinstance(output, torch.Tensor)
    answer = await device.ask(
        m.Backward(
            session=SESSION,
            attempt=ATTEMPT,
            step=1,
            forward=forward.request,
            values=(torch.ones_like(output),),
        )
    )
    stop.set()
    await running
    await store.close()
    return answer
