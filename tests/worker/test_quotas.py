"""A device may use so much of a worker, and another one does not notice a device that wants more."""

from __future__ import annotations

import pytest

from broker import decode, encode
from broker.protocol import messages as m
from broker.protocol.assembler import Assembled
from broker.protocol.frames import to_frames
from broker.transport.topology import DEAD, DEFAULT_SHARDS, REPLY_TO, shard_of, uplink_key
from server_worker.admission.quotas import (
    ANSWERS,
    BURIED,
    BURIED_BYTES,
    CREDIT,
    FIRST_CREDIT,
    MAX_DEVICES,
    OVERHEAD_BYTES,
    DeviceQuota,
    Quotas,
)
from server_worker.session.reorder_buffer import MOST_TOLD, MemoryBudget, PartKey, ReorderBuffer
from server_worker.store import StoredJob
from server_worker.store.base import WantedParts
from spliteasy.job.package import device_parts
from tests.simulation import toy
from tests.worker.conftest import ATTEMPT, JOB, Device, Server
from tests.worker.test_refusals import forward, still_serves

SMALL = DeviceQuota(messages_per_s=0.001, bytes_per_s=100_000, burst_s=10_000.0, sessions=2, jobs=3.0)


@pytest.fixture
def quota() -> DeviceQuota:
    """Ten messages, and hardly more for the rest of the test."""
    return SMALL


def quotas(**settings: float) -> tuple[Quotas, list[float]]:
    """Quotas and their clock."""
    now = [0.0]
    return Quotas(DeviceQuota(**settings), lambda: now[0]), now  # type: ignore[arg-type]


def test_messages_fill_up_again_with_time_and_no_further_than_the_burst() -> None:
    some, now = quotas(messages_per_s=10.0, burst_s=2.0)
    assert [some.message("a") for _ in range(21)] == [True] * 20 + [False]
    assert some.message("b")
    now[0] += 0.5
    assert [some.message("a") for _ in range(6)] == [True] * 5 + [False]
    now[0] += 1000.0
    assert [some.message("a") for _ in range(21)] == [True] * 20 + [False]


def test_a_tiny_frame_is_not_free_and_a_huge_one_passes_once() -> None:
    some, now = quotas(bytes_per_s=8192.0, burst_s=1.0)
    assert [some.frame("a", 1) for _ in range(32)] == [True] * 31 + [False]
    now[0] += 1.0
    assert some.frame("a", 80_000)
    now[0] += 5.0
    assert not some.frame("a", 1)
    now[0] += 5.0
    assert some.frame("a", 1)


def test_sessions_that_are_left_alone_make_room() -> None:
    some, now = quotas(sessions=2, session_s=60.0)
    assert [some.session("a", name) for name in ("x", "y", "z", "x")] == [True, True, False, True]
    now[0] += 50.0
    assert some.session("a", "x")
    now[0] += 20.0
    assert some.session("a", "z")
    assert not some.session("a", "y")
    assert some.session("b", "y")


def test_memory_is_bounded() -> None:
    some, _ = quotas()
    for number in range(MAX_DEVICES + 100):
        some.message(f"d{number}")
    assert some.devices == MAX_DEVICES


async def flood(device: Device, count: int) -> None:
    """Requests that are never answered otherwise than by ERROR or BUSY."""
    for _ in range(count):
        await device.send(forward(session=f"toy.{device.name}"))


async def test_a_flood_is_answered_busy_then_by_silence_and_others_train_on(server: Server) -> None:
    async with server.device("phone-2") as greedy, server.device() as other:
        await flood(greedy, 40)
        replies = [await greedy.reply() for _ in range(10 + int(ANSWERS))]
        busy = [reply for reply in replies if isinstance(reply, m.Busy)]
        assert len(busy) >= ANSWERS
        assert all(reply.retry_after_s > 0 for reply in busy)
        assert {reply.kind for reply in replies} == {"REOPEN", "BUSY"}
        assert isinstance(await other.open(), m.Opened)
        assert await still_serves(other)
        depth = await greedy.transport.depth(greedy.queue)
        assert depth is not None
        assert depth.messages == 0, "the rest of the flood was answered too"


async def test_sessions_beyond_the_quota_are_answered_busy(server: Server) -> None:
    async with server.device() as device:
        assert isinstance(await device.open(), m.Opened)
        digest = toy.job(JOB).digest
        replies = [
            await device.ask(m.Open(session=f"{job}.phone-1", attempt=ATTEMPT, digest=digest, held=(0,)))
            for job in ("other", "third", "toy")
        ]
        assert [reply.kind for reply in replies] == ["OPENED", "BUSY", "OPENED"]


async def test_a_dropped_upload_is_told_once_at_its_end(server: Server) -> None:
    async with server.device() as device:
        await flood(device, 10)
        for _ in range(10):
            await device.reply()
        ask = m.Ask(
            session="toy.phone-1", attempt=ATTEMPT, step=1, about="0" * 16, about_kind="FORWARD",
            forward="0" * 16,
        )  # fmt: skip
        frames = list(to_frames(encode(ask), message_id=ask.request, chunk_bytes=50))
        assert len(frames) > 3
        for frame in frames:
            key = uplink_key(device.name, shard_of(ask.session, DEFAULT_SHARDS))
            await device.transport.publish(key, frame, headers={REPLY_TO: device.queue})
        reply = await device.reply()
        assert isinstance(reply, m.Busy)
        assert reply.answers == ask.request


async def test_the_job_is_had_so_often_and_its_parts_are_read_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    get_job = server.store.get_job

    async def counted(name: str, digest: str | None = None, *, wanted: WantedParts) -> StoredJob | None:
        stored = await get_job(name, digest, wanted=wanted)
        read.extend(stored.parts if stored else ())
        return stored

    monkeypatch.setattr(server.store, "get_job", counted)
    async with server.device() as device:
        replies = [await device.ask(m.GetJob(session="toy.phone-1")) for _ in range(4)]
        assert [reply.kind for reply in replies] == ["JOB", "JOB", "JOB", "BUSY"]
    assert sorted(read) == sorted(device_parts(toy.job(JOB).parts)), "once, and nothing of the body"


def test_every_frame_counts_whatever_is_in_it() -> None:
    some, now = quotas(frames_per_s=10.0, burst_s=1.0)
    assert [some.frame("a", 0) for _ in range(11)] == [True] * 10 + [False]
    now[0] += 0.1
    assert [some.frame("a", 0) for _ in range(2)] == [True, False]


def test_dead_letters_of_one_device_are_few_and_small() -> None:
    some, now = quotas()
    kept = [some.dead_letter("a", 100) for _ in range(10_000)]
    assert sum(kept) == BURIED
    assert some.dead_letter("b", 100)
    now[0] += 1.0
    assert [some.dead_letter("a", 100) for _ in range(2)] == [True, False]
    nbytes = sum(1 << 20 for _ in range(1000) if some.dead_letter("c", 1 << 20))
    assert nbytes <= 2 * BURIED_BYTES


def test_small_answers_cost_no_more_than_what_was_received() -> None:
    some, _ = quotas()
    spent = 0
    while some.afford("a", 1000):
        spent += 1000
    assert spent <= FIRST_CREDIT
    received = answered = 0
    for _ in range(1000):
        some.frame("a", 65)
        received += 65 + OVERHEAD_BYTES
        while some.afford("a", 1000):
            answered += 1000
    assert answered <= received + 1000
    for _ in range(100):
        some.frame("a", 1 << 20)
    assert some.credit("a") <= CREDIT, "and it is not saved up for ever"


async def test_junk_beyond_the_quota_is_dropped_and_leaves_no_dead_letters(server: Server) -> None:
    async with server.device("phone-2") as greedy, server.device() as other:
        key = uplink_key("phone-2", shard_of("toy.phone-2", DEFAULT_SHARDS))
        for _ in range(3 * int(BURIED)):
            await greedy.transport.publish(key, b"junk", headers={REPLY_TO: greedy.queue})
        assert isinstance(await other.open(), m.Opened)
        assert await still_serves(other)
        depth = await greedy.transport.depth(DEAD)
        assert depth is not None
        assert 0 < depth.messages <= BURIED


def test_a_high_micro_batch_is_not_answered_by_a_message_for_each_below() -> None:
    arrivals = ReorderBuffer(MemoryBudget(1 << 20))
    told: set[PartKey] = set()
    for _ in range(100):
        absent = arrivals.absent(("BACKWARD", 1023), len(told), 0)
        assert len(absent) <= MOST_TOLD
        told.update(absent)
    assert ("FORWARD", 0) in told


async def test_the_frames_that_are_here_are_told_as_far_as_is_paid_for(server: Server) -> None:
    """An upload with a hole behind every frame, whose last frame comes again and again."""
    ask = m.Ask(
        session="toy.phone-1", attempt=ATTEMPT, step=1, about="0" * 16, about_kind="FORWARD",
        forward="0" * 16,
        digests=tuple(f"{n:016x}" for n in range(2000)), total=1, block_bytes=1,
    )  # fmt: skip
    frames = list(to_frames(encode(ask), message_id=ask.request, chunk_bytes=16))
    holes = [frame for index, frame in enumerate(frames) if index % 2 == 0][:1500]
    key = uplink_key("phone-1", shard_of(ask.session, DEFAULT_SHARDS))
    async with server.device() as device:
        sent = received = told = 0
        for frame in (*holes, *[frames[-1]] * 1500):
            await device.transport.publish(key, frame, headers={REPLY_TO: device.queue})
            sent += len(frame) + OVERHEAD_BYTES
        digest = toy.job(JOB).digest
        await device.send(m.Open(session="toy.phone-1", attempt=ATTEMPT, digest=digest, held=(0,)))
        async for delivery in device.subscription:
            await device.subscription.ack(delivery)
            outcome = device.assembler.add("workers", delivery.body)
            if isinstance(outcome, Assembled) and isinstance(decode(outcome.body), m.Opened):
                break
            received += len(delivery.body) + OVERHEAD_BYTES
            told += 1
        assert told > 10, "it is told what is here, while that is paid for"
        assert received <= sent + FIRST_CREDIT
