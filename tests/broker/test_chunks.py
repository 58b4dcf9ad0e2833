"""Frames: whatever order they come in, the body is whole, or the error is a WireError."""

from __future__ import annotations

import random
import struct
import zlib
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broker import Assembled, Assembler, AssemblerLimits, Partial, WireError, decode, encode_parts
from broker.protocol.assembler import MAX_PIECES
from broker.protocol.frames import CHUNK_BYTES, FRAME_BYTES, to_frames
from broker.protocol.messages import new_nonce
from tests.broker.frames_for_tests import ID, forge, frames_of
from tests.broker.messages_for_tests import carrier


@given(
    body=st.binary(min_size=1, max_size=2000),
    chunk_bytes=st.integers(1, 700),
    cuts=st.lists(st.integers(0, 2000), max_size=4),
    rng=st.randoms(use_true_random=False),
)
def test_any_order_with_repetitions_gives_the_body(
    body: bytes, chunk_bytes: int, cuts: list[int], rng: random.Random
) -> None:
    frames = list(to_frames(body, message_id=ID, chunk_bytes=chunk_bytes))
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    parts = [body[a:b] for a, b in pairwise(edges)]
    assert list(to_frames(parts, message_id=ID, chunk_bytes=chunk_bytes)) == frames
    assembler = Assembler()
    shuffled = frames[:-1] * 2
    rng.shuffle(shuffled)
    shuffled.insert(rng.randrange(len(shuffled) + 1), frames[-1])
    seen: set[int] = set()
    for frame in shuffled:
        outcome = assembler.add("phone-1", frame)
        offset = chunk_bytes * frames.index(frame)
        seen.update(range(offset, min(offset + chunk_bytes, len(body))))
        if len(seen) == len(body):
            break
        assert outcome == Partial(
            message_id=ID, last=frame is frames[-1], held_bytes=len(seen), total=len(body)
        )
        assert {n for held in assembler.held("phone-1", ID) for n in range(*held)} == seen
    assert isinstance(outcome, Assembled)
    assert bytes(outcome.body) == body
    assert assembler.bytes_held == 0


def test_the_layout_is_what_a_browser_expects() -> None:
    first, last = frames_of(150)
    body = random.Random(0).randbytes(150)
    for offset, frame, body_crc, payload in (
        (0, first, 0, body[:100]),
        (100, last, zlib.crc32(body), body[100:]),
    ):
        assert frame[:4] == b"SPEF"
        assert frame[4:8] == bytes((2, 0, 0, 0))
        assert frame[8:16].hex() == ID
        assert struct.unpack("<QQII", frame[16:40]) == (offset, 150, 100, body_crc)
        assert frame[40:60] == bytes(20)
        assert struct.unpack("<I", frame[60:64]) == (zlib.crc32(frame[:60] + frame[64:]),)
        assert frame[64:] == payload


def test_a_message_goes_from_tensors_to_frames_to_views() -> None:
    tensors = (torch.randn(300_000), torch.randn(64, 64).t())
    message = carrier(*tensors)
    frames = list(to_frames(encode_parts(message), message_id=new_nonce()))
    assert [len(frame) <= FRAME_BYTES for frame in frames] == [True, True]
    assembler = Assembler()
    assembler.add("phone-1", frames[1])
    outcome = assembler.add("phone-1", frames[0])
    assert isinstance(outcome, Assembled)
    received = decode(outcome.body)
    for sent, got in zip(tensors, received.values, strict=True):
        assert isinstance(got, torch.Tensor)
        assert torch.equal(got, sent)
        assert got.stride() == sent.stride()
        assert got.data_ptr() % 64 == 0
    outcome.body[-4:] = struct.pack("<f", 7)
    assert isinstance(received.values[1], torch.Tensor)
    assert received.values[1].t()[-1, -1] == 7, "decoded tensors are views of the assembled body"


def test_senders_and_ids_do_not_mix() -> None:
    assembler = Assembler()
    uploads = {
        (sender, message_id): frames_of(250, message_id=message_id, seed=seed)
        for seed, (sender, message_id) in enumerate([("phone-1", ID), ("phone-2", ID), ("phone-1", ID[::-1])])
    }
    for index in range(3):
        for seed, ((sender, message_id), frames) in enumerate(uploads.items()):
            outcome = assembler.add(sender, frames[index])
            assert outcome.message_id == message_id
            if index == 2:
                assert isinstance(outcome, Assembled)
                assert bytes(outcome.body) == random.Random(seed).randbytes(250)


def test_the_last_frame_says_that_it_was_the_last() -> None:
    """A worker that took over gets the last frame alone: it must be able to ask for the others."""
    assembler = Assembler()
    outcome = assembler.add("phone-1", frames_of(1000)[-1])
    assert outcome == Partial(message_id=ID, last=True, held_bytes=100, total=1000)


def test_single_frames_are_held_nowhere() -> None:
    assembler = Assembler(AssemblerLimits(sender_messages=0, messages=0))
    for _ in range(2):
        outcome = assembler.add("phone-1", frames_of(80)[0])
        assert isinstance(outcome, Assembled)
        assert bytes(outcome.body) == random.Random(0).randbytes(80)


def test_default_frames_are_a_mebibyte() -> None:
    frames = frames_of(3 * CHUNK_BYTES, chunk_bytes=CHUNK_BYTES)
    assert [len(frame) for frame in frames] == [1 << 20] * 3


@pytest.mark.parametrize(("size", "chunk_bytes"), [(0, 10), (10, 0), (10, 1 << 32)])
def test_what_can_not_be_cut(size: int, chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match="can't be cut"):
        frames_of(size, chunk_bytes=chunk_bytes)


@given(
    total=st.integers(1, 2000),
    chunk_bytes=st.integers(1, 700),
    again=st.integers(1, 700),
    lost=st.randoms(use_true_random=False),
)
def test_what_is_missing_comes_in_frames_of_any_size(
    total: int, chunk_bytes: int, again: int, lost: random.Random
) -> None:
    """A connection broke off and the next one is slower or faster: only the missing bytes are sent again."""
    body, assembler = lost.randbytes(total), Assembler()
    first = list(to_frames(body, message_id=ID, chunk_bytes=chunk_bytes))
    arrived = [frame for frame in first[:-1] if lost.random() < 0.6]
    for frame in arrived:
        assembler.add("phone-1", frame)
    held = assembler.held("phone-1", ID)
    rest = list(to_frames(body, message_id=ID, chunk_bytes=again, skip=held))
    sent = sum(len(frame) - 64 for frame in (*arrived, *rest))
    assert sent == total, "no byte is sent twice"
    outcomes = [assembler.add("phone-1", frame) for frame in rest]
    assert all(isinstance(outcome, Partial) for outcome in outcomes[:-1])
    assert isinstance(outcomes[-1], Assembled)
    assert bytes(outcomes[-1].body) == body
    assert outcomes[-1].chunk_bytes == again
    assert assembler.bytes_held == 0


def test_a_body_of_which_nothing_is_missing_needs_no_frame() -> None:
    assert list(to_frames(b"body", message_id=ID, skip=((0, 3), (2, 4)))) == []


# Malformed --------------------------------------------------------------------------------------------


def test_the_forged_frame_is_right_unless_changed() -> None:
    outcome = Assembler().add("phone-1", forge())
    assert isinstance(outcome, Assembled)
    assert bytes(outcome.body) == b"body"


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        (b"", "too short"),
        (forge(payload=b""), "too short"),
        (forge(magic=b"SPEZ"), "not a frame"),
        (forge(version=1), "version 1"),
        (forge(version=3), "version 3"),
        (forge(zero=b"\0\0\1"), "reserved"),
        (forge(reserved=b"x" * 20), "reserved"),
        (forge()[:-1], "checksum"),
        (forge() + b"x", "checksum"),
        (forge(chunk_bytes=0), "cut at 0"),
        (forge(chunk_bytes=3), "cut at 3"),
        (forge(total=0), "out of place"),
        (forge(total=2**53), "out of place"),
        (forge(total=2**64 - 1, offset=2**64 - 5), "out of place"),
        (forge(offset=1), "out of place"),
        (forge(total=3), "out of place"),
        (forge(total=8), "in the middle"),
        (forge(body_crc=7), "do not belong together"),
    ],
)
def test_malformed_frames(frame: bytes, match: str) -> None:
    with pytest.raises(WireError, match=match):
        Assembler().add("phone-1", frame)


@given(st.integers(0, (64 + 40) * 8 - 1))
def test_no_flipped_bit_goes_unnoticed(bit: int) -> None:
    frame = bytearray(frames_of(140)[1])
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError):
        Assembler().add("phone-1", frame)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_frame(data: bytes) -> None:
    for frame in (data, b"SPEF\x02\x00\x00\x00" + data):
        with pytest.raises(WireError):
            Assembler().add("phone-1", frame)


@pytest.mark.parametrize(
    "other",
    [frames_of(251)[1], frames_of(250, seed=1)[0], frames_of(250, seed=1, chunk_bytes=90)[1]],
    ids=["other total", "other bytes", "other bytes in part"],
)
def test_two_messages_under_one_id_are_found_out_and_begin_anew(other: bytes) -> None:
    assembler = Assembler()
    frames = frames_of(250)
    assembler.add("phone-1", frames[0])
    with pytest.raises(WireError, match="under the id"):
        assembler.add("phone-1", other)
    assert assembler.bytes_held == 0
    for frame in frames:
        outcome = assembler.add("phone-1", frame)
    assert isinstance(outcome, Assembled)


def test_frames_of_two_bodies_never_become_one() -> None:
    assembler = Assembler()
    first, second = frames_of(250), frames_of(250, seed=1)
    assembler.add("phone-1", first[0])
    assembler.add("phone-1", second[1])
    with pytest.raises(WireError, match="do not belong together"):
        assembler.add("phone-1", first[2])
    assert assembler.bytes_held == 0


def test_of_very_many_pieces_only_some_are_kept() -> None:
    """Each separate range costs memory and time, and a HAVE could not tell them all."""
    assembler, frames = Assembler(), frames_of(4000, chunk_bytes=1)
    for frame in frames[::2]:
        assembler.add("phone-1", frame)
    held = assembler.held("phone-1", ID)
    assert held == tuple((2 * n, 2 * n + 1) for n in range(MAX_PIECES))
    outcomes = [assembler.add("phone-1", frame) for frame in frames]
    assert isinstance(outcomes[-1], Assembled)
    assert bytes(outcomes[-1].body) == random.Random(0).randbytes(4000)


def fuzz(count: int, seed: int) -> int:
    """Feed damaged and shuffled frames; how many were refused. Never more is held than the limits say."""
    rng = random.Random(seed)
    limits = AssemblerLimits(sender_messages=4, sender_bytes=3000, messages=8, total_bytes=5000)
    assembler = Assembler(limits)
    bodies = {new_nonce(): rng.randbytes(rng.randrange(1, 1500)) for _ in range(20)}
    frames = [
        frame
        for message_id, body in bodies.items()
        for frame in to_frames(body, message_id=message_id, chunk_bytes=rng.choice((64, 100, 999)))
    ]
    refused = 0
    for _ in range(count):
        frame = bytearray(rng.choice(frames))
        if rng.random() < 0.4:
            where = rng.randrange(len(frame)) if rng.random() < 0.3 else rng.randrange(64)
            frame[where] = rng.randrange(256)
            if rng.random() < 0.8:  # a sender may compute checksums too
                frame[60:64] = struct.pack("<I", zlib.crc32(frame[64:], zlib.crc32(frame[:60])))
        try:
            outcome = assembler.add(rng.choice(("phone-1", "phone-2", "phone-3")), frame)
        except WireError:
            refused += 1
            continue
        if isinstance(outcome, Assembled) and outcome.message_id in bodies:
            assert len(outcome.body) == len(bodies[outcome.message_id])
        assert assembler.bytes_held <= limits.total_bytes
    return refused


def test_damaged_frames() -> None:
    assert 500 < fuzz(4_000, seed=20260101) < 3_000


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_damaged_frames_long(seed: int) -> None:
    assert 2_500 < fuzz(20_000, seed) < 15_000
