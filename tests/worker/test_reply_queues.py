"""Replies go into queues only that the broker bounds, whatever a device declares."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.protocol import messages as m
from broker.transport.base import Queue
from broker.transport.in_process import MemoryBroker
from broker.transport.topology import reply_slot
from server_worker.admission import reply_queues
from server_worker.admission.reply_queues import TRUSTED_BYTES, TRUSTED_S, ReplyQueues
from tests.worker.conftest import Server

QUEUE = reply_slot("phone-1", 3)
FOR_EVER = replace(QUEUE, quorum=True, expires_s=None)


async def test_a_queue_is_looked_at_again_after_a_while_and_after_so_many_bytes() -> None:
    broker, now = MemoryBroker(), [0.0]
    device, worker = broker.connect("phone-1"), broker.connect("worker")
    queues = ReplyQueues(lambda: now[0])

    async def anew(queue: Queue) -> None:
        await device.delete(QUEUE.name)
        await device.declare(queue)

    assert not await queues.is_fit(worker, QUEUE.name, 1)
    await device.declare(QUEUE)
    assert await queues.is_fit(worker, QUEUE.name, TRUSTED_BYTES)
    await anew(FOR_EVER)
    assert not await queues.is_fit(worker, QUEUE.name, 1), "so many bytes, and it is looked at again"
    await anew(QUEUE)
    assert await queues.is_fit(worker, QUEUE.name, 1)
    await anew(FOR_EVER)
    now[0] += TRUSTED_S
    assert not await queues.is_fit(worker, QUEUE.name, 1)
    assert await worker.depth(QUEUE.name) is None
    await anew(QUEUE)
    assert await queues.is_fit(worker, QUEUE.name, 1)
    await anew(FOR_EVER)
    queues.forget()
    assert not await queues.is_fit(worker, QUEUE.name, 1), "over another connection"


@pytest.mark.parametrize(
    "name", ["spliteasy.shard.01", "spliteasy.dead", "", "x", "spliteasy.reply.phone-1.g"]
)
async def test_what_is_no_reply_queue_is_left_alone(name: str) -> None:
    broker = MemoryBroker()
    worker = broker.connect("worker")
    await worker.declare(Queue(name=name))
    assert not await ReplyQueues(lambda: 0.0).is_fit(worker, name, 1)
    assert await worker.depth(name) is not None


async def test_so_many_queues_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_queues, "MAX_QUEUES", 3)
    worker, queues = MemoryBroker().connect("worker"), ReplyQueues(lambda: 0.0)
    for slot in range(8):
        await worker.declare(reply_slot("phone-1", slot))
        assert await queues.is_fit(worker, reply_slot("phone-1", slot).name, 1)
    assert len(queues) == 3


async def test_a_reply_to_a_queue_without_bounds_is_dropped_and_others_are_served(server: Server) -> None:
    async with server.device() as device:
        await device.transport.declare(FOR_EVER)
        right, device.queue = device.queue, FOR_EVER.name
        await device.send(m.GetJob(session="toy.phone-1"))
        device.queue = right
        assert isinstance(await device.ask(m.GetJob(session="toy.phone-1")), m.Job)
        assert await device.transport.depth(FOR_EVER.name) is None
