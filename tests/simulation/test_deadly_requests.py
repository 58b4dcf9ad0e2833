"""What ends anybody who computes it, or who reads it, does not end one worker after the other, whatever the
broker counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from broker.protocol import messages as m
from broker.transport.in_process import MemoryBroker, MemoryTransport
from broker.transport.topology import DEAD, QueueType, reply_queue
from server_worker.actor import MAX_DELIVERIES
from server_worker.admission import intake
from server_worker.admission.deliveries import MAX_UNREAD
from server_worker.config import WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.store import SqliteStore, StoredJob
from server_worker.worker import Worker
from tests.simulation import toy
from tests.simulation.clock import run_virtually
from tests.worker.conftest import ATTEMPT, SESSION, Device
from tests.worker.test_refusals import forward

JOB = toy.job(toy.Variant())
WORKERS = 4 * MAX_UNREAD


class Deadly:
    """Computes until it is told not to: then a computation ends its worker, as the system's killer would."""

    def __init__(self) -> None:
        self.armed = False
        self.kill: Callable[[], object] = lambda: None

    async def __call__(self, run: Callable[[], Any]) -> Any:
        if not self.armed:
            return run()
        self.kill()
        return await asyncio.Event().wait()


@pytest.mark.parametrize("queues", QueueType)
def test_a_request_that_ends_its_workers_is_buried_and_the_device_told(queues: QueueType) -> None:
    ended, answer, reason, count = run_virtually(_play(queues))
    assert ended == MAX_DELIVERIES + 1
    assert isinstance(answer, m.Error)
    assert (answer.code, answer.retriable) == ("computation-failed", False)
    assert "without an end" in reason
    assert count == 1, "each request is counted for itself"


@pytest.mark.parametrize("queues", QueueType)
def test_a_frame_that_ends_whoever_reads_it_is_buried_unread(
    queues: QueueType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, answer, reason, count = run_virtually(_play(queues, monkeypatch))
    assert ended == MAX_UNREAD + 1
    assert answer is None, "nobody could read who asked"
    assert "without an end" in reason
    assert count == 1


async def _play(
    queues: QueueType, reading: pytest.MonkeyPatch | None = None
) -> tuple[int, m.AnyMessage | None, str, int]:
    """Workers end one after the other: of computing a request, or (`reading`) of decoding it."""
    loop, broker, compute = asyncio.get_running_loop(), MemoryBroker(delivery_limit=10**6), Deadly()
    store = SqliteStore(None, inline=True, clock=loop.time)
    await store.put_job(StoredJob(name="toy", digest=JOB.digest, manifest=JOB.manifest, parts=JOB.parts))
    transport = broker.connect("phone-1")
    queue = reply_queue("phone-1", m.new_nonce())
    await transport.declare(queue)
    device = Device(transport, await transport.subscribe(queue.name, prefetch=10), queue.name, "phone-1")
    asked: asyncio.Task[m.AnyMessage] | None = None
    ended = 0
    for number in range(WORKERS):
        connected: list[MemoryTransport] = []

        async def connect(connected: list[MemoryTransport] = connected) -> MemoryTransport:
            connected.append(broker.connect("worker"))
            return connected[-1]

        worker = Worker(
            WorkerConfig(
                name=f"worker-{number}", queues=queues, heartbeat_s=1000.0
            ),  # nothing is loaded ahead
            connect=connect,
            store=store,
            engine=LocalEngine(compute),
            clock=loop.time,
        )
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))

        def kill(running: asyncio.Task[None] = running, connected: list[MemoryTransport] = connected) -> None:
            broker.drop(connected[-1])
            running.cancel()

        compute.kill = kill
        if asked is None:
            await worker.connected.wait()
            opened = m.Open(session=SESSION, attempt=ATTEMPT, digest=JOB.digest, held=(0,))
            assert isinstance(await device.ask(opened), m.Opened)
            await worker.actors[SESSION].wait_idle()
            if reading is None:
                compute.armed = True
            else:
                reading.setattr(intake, "decode", lambda _: _end(compute))
            await device.send(forward())
            asked = asyncio.create_task(device.reply())
            letters = await broker.connect("operator").subscribe(DEAD, prefetch=1)
            buried = asyncio.create_task(anext(aiter(letters)))
        await asyncio.wait({running, buried}, return_when=asyncio.FIRST_COMPLETED)
        if buried.done():
            break
        with suppress(asyncio.CancelledError):
            await running
        ended += 1
    assert asked is not None
    if reading is None:
        answer = await asked
    else:
        answer = None
        asked.cancel()
    reason = (await buried).headers["reason"]
    count = await store.begin_delivery(SESSION, "another")
    compute.armed = False
    stop.set()
    await running
    await store.close()
    return ended, answer, reason, count


def _end(compute: Deadly) -> None:
    compute.kill()
    raise asyncio.CancelledError
