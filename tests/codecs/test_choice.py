"""`auto`: what suits a link, and that an estimate which wavers changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliteasy.codecs import choose_codec, parse_codec

MB = 10**6
NAMES = ("fp32", "lossless", "fp16", "bf16", "int8", "topk:0.01", "topk:0.3")
allow_lists = st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True)
sizes = st.integers(1, 10**9)
rates = st.floats(1e3, 1e11)


@pytest.mark.parametrize(
    ("rate", "chosen"), [(1e11, "fp32"), (1e9, "fp16"), (30 * MB, "int8"), (MB / 8, "int8")]
)
def test_a_faster_link_carries_more(rate: float, chosen: str) -> None:
    allowed = ("fp32", "lossless", "fp16", "int8")
    assert choose_codec(allowed, nbytes=33 * MB, rate=rate) == chosen


def test_small_messages_stay_exact_on_a_good_link() -> None:
    assert choose_codec(("fp32", "int8"), nbytes=2000, rate=2.5 * MB) == "fp32"


def test_what_a_codec_made_of_the_values_counts() -> None:
    allowed = ("lossless", "fp16")
    assert choose_codec(allowed, nbytes=MB, rate=MB) == "lossless"
    assert choose_codec(allowed, nbytes=MB, rate=MB, current="lossless", ratios={"lossless": 0.84}) == "fp16"
    assert choose_codec(allowed, nbytes=MB, rate=MB, current="fp16", ratios={"lossless": 0.84}) == "fp16"


@given(allow_lists, sizes)
def test_of_an_unknown_link_the_fewest_bytes_are_asked_until_it_is_known(
    allowed: list[str], size: int
) -> None:
    chosen = choose_codec(allowed, nbytes=size, rate=None)
    assert parse_codec(chosen).typical_ratio == min(parse_codec(name).typical_ratio for name in allowed)
    assert choose_codec(allowed, nbytes=size, rate=None, current=allowed[0]) == allowed[0]


@given(allow_lists, sizes, rates)
def test_only_what_is_allowed_is_chosen_and_nothing_much_slower_than_the_fastest(
    allowed: list[str], size: int, rate: float
) -> None:
    def seconds(name: str) -> float:
        codec = parse_codec(name)
        return size * (codec.typical_ratio / rate + codec.seconds_per_byte)

    chosen = choose_codec(allowed, nbytes=size, rate=rate)
    limit = 1.1 * min(map(seconds, allowed)) + 0.001
    assert chosen in allowed
    assert seconds(chosen) <= limit
    assert all(seconds(name) > limit for name in allowed[: allowed.index(chosen)])


@given(allow_lists, sizes, rates, st.lists(st.floats(1.0, 1.2), min_size=2, max_size=40))
def test_an_estimate_that_wavers_by_a_fifth_settles(
    allowed: list[str], size: int, rate: float, wavering: list[float]
) -> None:
    """The choice only moves up the list of what is liked after the first one, so it comes to rest."""
    current = choose_codec(allowed, nbytes=size, rate=rate * wavering[0])
    for factor in wavering:
        chosen = choose_codec(allowed, nbytes=size, rate=rate * factor, current=current)
        assert allowed.index(chosen) <= allowed.index(current)
        current = chosen
