"""What is counted of deliveries that come again."""

from __future__ import annotations

import torch

from broker.protocol.assembler import Assembler, Partial
from broker.protocol.envelope import encode_parts
from broker.protocol.frames import to_frames
from broker.transport.base import Delivery
from broker.transport.topology import DEFAULT_SHARDS, REPLY_TO, QueueType, reply_slot, shard_of, uplink_key
from server_worker.admission.deliveries import MAX_UNREAD, Deliveries
from server_worker.admission.intake import AwaitedFrames, Intake
from server_worker.admission.quotas import DeviceQuota, Quotas
from server_worker.config import Trust
from server_worker.inbound import Inbound, Settlement
from server_worker.placement.queue_type import settle_queue_type
from server_worker.store import SqliteStore, Store
from spliteasy.errors import UserError
from tests.worker.conftest import SESSION
from tests.worker.test_refusals import forward

KEY = uplink_key("phone-1", shard_of(SESSION, DEFAULT_SHARDS))


def delivery(body: bytes, *, again: bool) -> Delivery:
    headers = {REPLY_TO: reply_slot("phone-1", 1).name}
    return Delivery(body=body, routing_key=KEY, principal="phone-1", redelivered=again, headers=headers)


async def test_a_request_whose_last_frame_a_dead_worker_left_counts_as_delivered_again() -> None:
    """The successor asks for its other frames, so that all of them come for the first time."""

    async def nothing(*_: object) -> None:
        return

    settlement = Settlement(ack=nothing, dead_letter=nothing)
    intake = Intake(
        Assembler(), trust=Trust.ENROLLED, shards=DEFAULT_SHARDS, quotas=Quotas(DeviceQuota(), lambda: 0.0)
    )

    def take(frame: bytes, *, again: bool = False) -> Inbound | AwaitedFrames:
        taken = intake.take(delivery(frame, again=again), settlement, arrived_s=0.0)
        assert isinstance(taken, Inbound | AwaitedFrames)
        return taken

    request = forward(values=(torch.ones(100, 100),))
    parts = encode_parts(request)
    frames = [bytes(each) for each in to_frames(parts, message_id=request.request, chunk_bytes=8192)]
    assert len(frames) > 2
    left = take(frames[-1], again=True)
    assert isinstance(left, AwaitedFrames)
    assert isinstance(left.outcome, Partial)
    *_, whole = [take(frame) for frame in frames]
    assert isinstance(whole, Inbound)
    assert whole.again
    *_, repeated = [take(frame) for frame in frames]
    assert isinstance(repeated, Inbound)
    assert not repeated.again, "it is told once"


async def test_a_frame_is_counted_from_its_second_delivery_until_it_is_served() -> None:
    store = SqliteStore(None, inline=True)
    deliveries = Deliveries(store)
    again = delivery(b"frame", again=True)
    for _ in range(2 * MAX_UNREAD):
        assert await deliveries.may_read(delivery(b"frame", again=False))
    assert all([await deliveries.may_read(again) for _ in range(MAX_UNREAD)])
    assert await deliveries.may_read(delivery(b"another", again=True))
    assert not await deliveries.may_read(again)
    await deliveries.served(again)
    assert await deliveries.may_read(again)
    await store.close()


async def test_a_store_that_does_not_answer_buries_nothing() -> None:
    store = SqliteStore(None, inline=True)
    deliveries = Deliveries(store)
    await store.close()
    again = delivery(b"frame", again=True)
    assert all([await deliveries.may_read(again) for _ in range(2 * MAX_UNREAD)])
    await deliveries.served(again)


async def test_a_stack_keeps_the_type_of_its_queues() -> None:
    store = SqliteStore(None, inline=True)
    assert await settle_queue_type(store, QueueType.CLASSIC) is QueueType.CLASSIC
    assert await settle_queue_type(store, None) is QueueType.CLASSIC
    assert await _refusal(store, QueueType.QUORUM) == "leave --queues out, or say --queues classic"
    await store.close()


async def test_a_new_stack_has_quorum_queues_and_so_has_one_from_before_the_choice() -> None:
    new, older = SqliteStore(None, inline=True), SqliteStore(None, inline=True)
    assert await settle_queue_type(new, None) is QueueType.QUORUM
    await older.shards(16)
    assert await _refusal(older, QueueType.CLASSIC) == "leave --queues out, or say --queues quorum"
    assert await settle_queue_type(older, None) is QueueType.QUORUM
    await new.close()
    await older.close()


async def _refusal(store: Store, wanted: QueueType) -> str:
    """Return what the error advises, up to the target of make."""
    try:
        await settle_queue_type(store, wanted)
    except UserError as error:
        return str(error.hint).partition(" (make")[0]
    raise AssertionError("it was not refused")
