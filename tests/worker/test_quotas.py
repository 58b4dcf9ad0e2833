"""What one device may use of a worker, and that another one does not notice who wants more."""

from __future__ import annotations

import pytest

from broker import encode
from broker import messages as m
from broker.chunks import to_frames
from broker.topology import REPLY_TO, shard_of, uplink_key
from server_worker.quotas import ANSWERS, MAX_DEVICES, DeviceQuota, Quotas
from tests.simulation import toy
from tests.worker.conftest import ATTEMPT, JOB, Device, Server
from tests.worker.test_refusals import forward, still_serves

SMALL = DeviceQuota(messages_per_s=0.001, bytes_per_s=100_000, burst_s=10_000.0, sessions=2)


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
    assert [some.frame("a", 1) for _ in range(3)] == [True, True, False]
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
            key = uplink_key(device.name, shard_of(ask.session))
            await device.transport.publish(key, frame, headers={REPLY_TO: device.queue})
        reply = await device.reply()
        assert isinstance(reply, m.Busy)
        assert reply.answers == ask.request


async def test_asking_for_the_job_again_and_again_costs_more(server: Server) -> None:
    async with server.device() as device:
        assert isinstance(await device.ask(m.GetJob(session="toy.phone-1")), m.Job)
        assert isinstance(await device.ask(m.GetJob(session="toy.phone-1")), m.Busy)
