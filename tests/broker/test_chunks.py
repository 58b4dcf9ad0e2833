"""Frames: whatever order they come in, the body is whole, or the error is a WireError."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broker import Assembled, Assembler, AssemblerLimits, Partial, WireError, decode, encode_parts
from broker.protocol.frames import CHUNK_BYTES, FRAME_BYTES, MAX_CHUNKS, in_ranges, to_frames, to_ranges
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
    seen: set[bytes] = set()
    for frame in shuffled:
        outcome = assembler.add("phone-1", frame)
        seen.add(frame)
        if len(seen) == len(frames):
            break
        assert outcome == Partial(message_id=ID, last=frame is frames[-1], held=len(seen), count=len(frames))
        assert assembler.held("phone-1", ID) == sorted(frames.index(each) for each in seen)
    assert isinstance(outcome, Assembled)
    assert bytes(outcome.body) == body
    assert assembler.bytes_held == 0


def test_the_layout_is_what_a_browser_expects() -> None:
    first, last = frames_of(150)
    body = random.Random(0).randbytes(150)
    for index, frame, flags, payload in ((0, first, 0, body[:100]), (1, last, 1, body[100:])):
        assert frame[:4] == b"SPEF"
        assert struct.unpack("<BBH", frame[4:8]) == (1, flags, 0)
        assert frame[8:16].hex() == ID
        assert struct.unpack("<IIQ", frame[16:32]) == (index, 100, 150)
        assert struct.unpack("<I", frame[60:64]) == (zlib.crc32(frame[:60] + frame[64:]),)
        assert frame[64:] == payload
    assert first[32:60] == bytes(28)
    assert last[32:48] == hashlib.blake2b(first[60:64], digest_size=16).digest()


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
    assert outcome == Partial(message_id=ID, last=True, held=1, count=10)


def test_single_frames_are_held_nowhere() -> None:
    assembler = Assembler(AssemblerLimits(sender_messages=0, messages=0))
    for _ in range(2):
        outcome = assembler.add("phone-1", frames_of(80)[0])
        assert isinstance(outcome, Assembled)
        assert bytes(outcome.body) == random.Random(0).randbytes(80)


def test_default_frames_are_a_mebibyte() -> None:
    frames = frames_of(3 * CHUNK_BYTES, chunk_bytes=CHUNK_BYTES)
    assert [len(frame) for frame in frames] == [1 << 20] * 3


@pytest.mark.parametrize(("size", "chunk_bytes"), [(0, 10), (10, 0), ((1 << 16) + 1, 1)])
def test_what_can_not_be_cut(size: int, chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match="can't be cut"):
        frames_of(size, chunk_bytes=chunk_bytes)


def test_frames_that_the_other_side_has_are_left_out() -> None:
    body = random.Random(0).randbytes(1000)
    frames = frames_of(1000)
    rest = list(to_frames(body, message_id=ID, chunk_bytes=100, skip={0, 3, 9}))
    assert rest == [frame for index, frame in enumerate(frames) if index not in (0, 3, 9)]


@given(st.sets(st.integers(0, 300)))
def test_ranges_name_the_same_indexes(indexes: set[int]) -> None:
    ranges = to_ranges(sorted(indexes))
    assert in_ranges(ranges) == indexes
    assert all(b[0] > a[1] for a, b in pairwise(ranges)), "neighbours are joined"


@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 2**60)), max_size=50))
def test_hostile_ranges_cost_little(ranges: list[tuple[int, int]]) -> None:
    assert len(in_ranges(ranges)) <= MAX_CHUNKS


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
        (forge(version=2), "version 2"),
        (forge(flags=3), "not a frame"),
        (forge(zero=1), "not a frame"),
        (forge(reserved=b"x" * 12), "not a frame"),
        (forge()[:-1], "checksum"),
        (forge() + b"x", "checksum"),
        (forge(chunk_bytes=0), "no message"),
        (forge(total=0), "no message"),
        (forge(total=2**53, chunk_bytes=2**32 - 1), "no message"),
        (forge(total=(1 << 16) + 1, chunk_bytes=1), "no message"),
        (forge(index=1), "out of place"),
        (forge(flags=0), "out of place"),
        (forge(total=8), "out of place"),
        (forge(total=8, index=1, payload=b"12345"), "5 bytes long"),
        (forge(total=8, flags=0, payload=b"123"), "3 bytes long"),
        (forge(digest=b"x" * 16), "do not belong together"),
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
    for frame in (data, b"SPEF\x01\x01\x00\x00" + data):
        with pytest.raises(WireError):
            Assembler().add("phone-1", frame)


@pytest.mark.parametrize(
    "other",
    [frames_of(251)[1], frames_of(250, chunk_bytes=90)[1], frames_of(250, seed=1)[0]],
    ids=["other total", "other chunks", "other bytes"],
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
