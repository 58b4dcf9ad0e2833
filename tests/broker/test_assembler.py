"""Unfinished messages take bounded memory, and what is there of one goes on as another."""

from __future__ import annotations

import random

import pytest

from broker import Assembled, Assembler, AssemblerLimits, OverBudget, Partial, WireError
from broker.protocol.frames import payload_digests, to_frames
from broker.protocol.messages import new_nonce
from tests.broker.frames_for_tests import ID, forge, frames_of


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    "limits",
    [
        AssemblerLimits(sender_messages=2),
        AssemblerLimits(sender_bytes=500),
        AssemblerLimits(messages=2),
        AssemblerLimits(total_bytes=500),
    ],
    ids=["messages of a sender", "bytes of a sender", "messages", "bytes"],
)
def test_over_budget_is_an_answer_and_goes_away(limits: AssemblerLimits) -> None:
    assembler = Assembler(limits)
    uploads = [frames_of(250, message_id=new_nonce(), seed=seed) for seed in range(3)]
    for frames in uploads[:2]:
        assert isinstance(assembler.add("phone-1", frames[0]), Partial)
    refused = [assembler.add("phone-1", frame) for frame in uploads[2]]
    assert [type(outcome) for outcome in refused] == [OverBudget] * 3
    assert [outcome.last for outcome in refused if isinstance(outcome, OverBudget)] == [False, False, True]
    assert assembler.bytes_held == 500
    for frame in uploads[0][1:]:
        outcome = assembler.add("phone-1", frame)
    assert isinstance(outcome, Assembled)
    for frame in uploads[2]:
        outcome = assembler.add("phone-1", frame)
    assert isinstance(outcome, Assembled)


@pytest.mark.parametrize("limits", [AssemblerLimits(sender_messages=1), AssemblerLimits(sender_bytes=300)])
def test_one_senders_budget_is_not_anothers(limits: AssemblerLimits) -> None:
    assembler = Assembler(limits)
    assert isinstance(assembler.add("phone-1", frames_of(250)[0]), Partial)
    assert isinstance(assembler.add("phone-1", frames_of(250, message_id=ID[::-1])[0]), OverBudget)
    assert isinstance(assembler.add("phone-2", frames_of(250)[0]), Partial)


def test_a_body_that_never_fits_is_an_error() -> None:
    assembler = Assembler(AssemblerLimits(body_bytes=249))
    with pytest.raises(WireError, match="limit is 249"):
        assembler.add("phone-1", frames_of(250)[0])


def test_a_huge_announcement_reserves_nothing() -> None:
    assembler = Assembler()
    frame = forge(total=1 << 17, body_crc=0)
    assert isinstance(assembler.add("phone-1", frame), Partial)
    with pytest.raises(WireError, match="limit"):
        assembler.add(
            "phone-2", forge(chunk_bytes=1 << 20, total=1 << 36, payload=bytes(1 << 20), body_crc=0)
        )
    assert assembler.bytes_held == 1 << 17


def test_stale_uploads_expire_by_the_clock() -> None:
    clock = Clock()
    assembler = Assembler(AssemblerLimits(expire_s=10), clock)
    old, young = frames_of(250), frames_of(250, message_id=ID[::-1])
    assembler.add("phone-1", old[0])
    clock.now_s = 6
    assembler.add("phone-1", young[0])
    clock.now_s = 9.9
    assembler.add("phone-1", old[1])
    clock.now_s = 16
    assert assembler.expire() == [("phone-1", ID[::-1])]
    assert assembler.held("phone-1", ID) == ((0, 200),)
    clock.now_s = 20
    outcome = assembler.add("phone-1", old[2])
    assert outcome == Partial(message_id=ID, last=True, held_bytes=50, total=250)


def test_drop_forgets_one_sender() -> None:
    assembler = Assembler()
    for sender in ("phone-1", "phone-2"):
        assembler.add(sender, frames_of(250)[0])
    assembler.drop("phone-1")
    assert assembler.held("phone-1", ID) == ()
    assert assembler.held("phone-2", ID) == ((0, 100),)


# Under another id ----------------------------------------------------------------------------------


def test_a_new_message_takes_over_the_payloads_that_it_shares_with_an_unfinished_one() -> None:
    """The new body differs in its first chunk; the old one's last has not come, nor has its fifth."""
    other, assembler = "f" * 16, Assembler()
    old = random.Random(0).randbytes(1050)
    new = bytes(100) + old[100:]
    for index, frame in enumerate(to_frames(old, message_id=ID, chunk_bytes=100)):
        if index not in (5, 10):
            assembler.add("phone-1", frame)
    digests = payload_digests([new], 100, first=100)
    for sender, total in (("phone-2", 1050), ("phone-1", 1049)):
        assembler.adopt(sender, other, block_bytes=100, total=total, digests=digests)
        assert assembler.held(sender, other) == ()
    assembler.adopt("phone-1", other, block_bytes=100, total=1050, digests=digests)
    held = assembler.held("phone-1", other)
    assert held == ((100, 500), (600, 1000))
    assert assembler.held("phone-1", ID) == ()
    outcomes = [
        assembler.add("phone-1", frame)
        for frame in to_frames(new, message_id=other, chunk_bytes=100, skip=held)
    ]
    assert isinstance(outcomes[-1], Assembled)
    assert bytes(outcomes[-1].body) == new
    assert assembler.bytes_held == 0


def test_the_last_payload_and_those_without_a_digest_come_again() -> None:
    assembler, body = Assembler(), bytes(range(250)) * 4
    frames = list(to_frames(body, message_id=ID, chunk_bytes=100))
    for frame in frames[1:]:
        assembler.add("phone-1", frame)
    digests = payload_digests([body], 100, first=100)
    assembler.adopt("phone-1", "e" * 16, block_bytes=100, total=1000, digests=digests[:4])
    assert assembler.held("phone-1", "e" * 16) == ((100, 400),)


def test_a_restarted_sender_may_cut_in_another_size() -> None:
    assembler, body, other = Assembler(), random.Random(1).randbytes(1000), "e" * 16
    for frame in list(to_frames(body, message_id=ID, chunk_bytes=200))[:3]:
        assembler.add("phone-1", frame)
    digests = payload_digests([body], 90, first=100)
    assembler.adopt("phone-1", other, block_bytes=90, total=1000, digests=digests)
    assert assembler.held("phone-1", other) == ((0, 540),), "of the seventh block a part is missing"
