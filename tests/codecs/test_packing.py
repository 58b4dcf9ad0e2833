"""A side's packer: which codecs the job allows, and error feedback while codecs change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spliteasy.codecs.packer import KEPT_SIZES, PLACES, Expected, Packer, bytes_of, expected_like, unpack
from spliteasy.errors import DataError

ALLOW = ("fp32", "lossless", "topk:0.25", "topk:0.5")
SHAPE = (3, 4)
courses = st.lists(st.tuples(st.sampled_from(ALLOW), st.booleans()), min_size=1, max_size=12)


def packer() -> Packer:
    return Packer({"activations": ALLOW, "gradients": ("int8",)}, 7, "phone-1")


def values(step: int) -> torch.Tensor:
    """Whole numbers: their sums are exact."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(-50, 50, SHAPE, generator=generator).to(torch.float32)


def sent(side: Packer, step: int, codec: str) -> torch.Tensor:
    packed = side.pack("activations", (values(step),), step=step, codec=codec)
    assert packed.codec == codec
    (value,) = unpack(packed, expected_like((values(step),)), codecs=ALLOW)
    assert isinstance(value, torch.Tensor)
    return value


@given(courses)
def test_nothing_is_lost_while_codecs_change(course: list[tuple[str, bool]]) -> None:
    """All that was sent and what is held back are the sum of what was given, whatever was aborted between.

    After a codec without feedback nothing is held back.
    """
    side, given_, arrived = packer(), torch.zeros(SHAPE), torch.zeros(SHAPE)
    for step, (codec, aborted) in enumerate(course):
        if aborted:
            sent(side, step, codec)
            side.abort()
        value = sent(side, step, codec)
        side.apply()
        given_ += values(step)
        arrived += value
        held = sum(side.state().values(), start=torch.zeros(SHAPE))
        assert torch.equal(arrived + held, given_)
        assert codec.startswith("topk") or not side.state()


@given(courses, st.integers(0, 11))
def test_a_side_that_was_restored_sends_the_same_bits(course: list[tuple[str, bool]], at: int) -> None:
    side, other = packer(), packer()
    for step, (codec, _) in enumerate(course):
        if step == at:
            other.load_state(side.state())
        value = sent(side, step, codec)
        side.apply()
        if step >= at:
            assert torch.equal(sent(other, step, codec), value)
            other.apply()


def test_an_evaluation_leaves_what_is_held_back_alone() -> None:
    side = packer()
    sent(side, 1, "topk:0.25")
    side.apply()
    before = side.state()
    for codec in ALLOW:
        packed = side.pack_evaluation((values(2),), codec=codec)
        (value,) = unpack(packed, expected_like((values(2),)), codecs=ALLOW)
        assert isinstance(value, torch.Tensor)
        assert torch.equal(value, values(2))
    side.apply()
    assert before.keys() == side.state().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in side.state().items())


@pytest.mark.parametrize("codec", ["int8", "topk:0.3", "auto", "", None])
def test_a_codec_that_the_job_does_not_allow_is_refused(codec: str | None) -> None:
    with pytest.raises(DataError, match="the job allows fp32, lossless"):
        packer().pack("activations", (values(1),), step=1, codec=codec)
    packed = Packer({"activations": ("fp16",)}).pack("activations", (values(1),), step=1)
    with pytest.raises(DataError, match="packed by 'fp16', the job says fp32 or lossless"):
        unpack(packed, expected_like((values(1),)), codecs=ALLOW)


def test_where_the_job_names_one_codec_nobody_need_ask_for_it() -> None:
    side = packer()
    assert side.pack("gradients", (values(1),), step=1).codec == "int8"
    with pytest.raises(DataError, match="'fp32' asked for gradients, the job allows int8"):
        side.pack("gradients", (values(1),), step=1, codec="fp32")


def test_batches_of_ever_other_sizes_do_not_fill_the_memory() -> None:
    """The remainder of full batches and that of the newest other size are held back, for each value."""
    side = Packer({"activations": ("topk:0.25",), "gradients": ("topk:0.25",)}, 7, "phone-1")
    course = [5, 64, 3, *range(1, 64), 64, 7]
    for step, samples in enumerate(course):
        for place in PLACES:
            side.pack(place, (torch.randn(samples, 9), torch.randn(samples, 2)), step=step)
        side.apply()
        full = max(course[: step + 1])
        state = side.state()
        assert {f"feedback/gradients/0/0/{size}x9" for size in (full, samples)} <= state.keys()
        assert len(state) <= len(PLACES) * 2 * KEPT_SIZES
    assert {name.rpartition("/")[2] for name in side.state()} == {"64x9", "64x2", "7x9", "7x2"}
    full_batch: list[Expected] = [((64, 9), torch.float32), ((64, 2), torch.float32)]
    most = sum(side.feedback_bytes(place, full_batch) for place in PLACES)
    assert bytes_of(side.state().values()) < most == 3 * 2 * 64 * 11 * 4
    assert packer().feedback_bytes("gradients", full_batch) == 0, "int8 holds nothing back"
