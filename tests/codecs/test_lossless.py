"""`lossless` and `fp32`: the same bits, in fewer bytes where there is something to gain."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spliteasy.codecs import parse_codec
from tests.codecs.samples import FLOATS, INTS, decoded, floats, same_bits

CODEC = parse_codec("lossless")


@pytest.mark.parametrize("name", ["lossless", "fp32"])
@given(tensor=floats())
def test_every_bit_comes_back(name: str, tensor: torch.Tensor) -> None:
    codec = parse_codec(name)
    assert codec.lossless
    assert same_bits(decoded(codec, codec.encode(tensor), tensor), tensor)


@given(st.sampled_from(FLOATS), st.integers(0, 1 << 32), st.integers(1, 3000))
def test_every_bit_pattern_comes_back(dtype: torch.dtype, seed: int, count: int) -> None:
    """NaN payloads, subnormals and negative zeros too."""
    generator = torch.Generator().manual_seed(seed)
    size = INTS[dtype.itemsize]
    tensor = torch.randint(
        torch.iinfo(size).min, torch.iinfo(size).max, (count,), generator=generator, dtype=size
    ).view(dtype)
    assert same_bits(decoded(CODEC, CODEC.encode(tensor), tensor), tensor)


@pytest.mark.parametrize(
    ("tensor", "form", "largest_share"),
    [
        (torch.randn(32, 8, 16, 16, generator=torch.Generator().manual_seed(1)).relu(), "zeros+planes", 0.46),
        (torch.randn(32, 8, 16, 16, generator=torch.Generator().manual_seed(1)), "planes", 0.86),
        (torch.eye(7), "zeros", 0.2),
        (torch.zeros(1000), "zeros", 0.04),
        (torch.tensor([1.0, -2.0, 3e30]), "plain", 1.0),
        (torch.full((100,), -0.0), "planes", 0.9),
        (
            torch.randint(-(2**31), 2**31, (4096,), dtype=torch.int64).to(torch.int32).view(torch.float32),
            "plain",
            1.0,
        ),
    ],
)
def test_each_step_is_used_only_where_it_wins(tensor: torch.Tensor, form: str, largest_share: float) -> None:
    encoded = CODEC.encode(tensor)
    assert encoded.meta == {"form": form}
    assert encoded.nbytes <= largest_share * tensor.nbytes
    assert same_bits(decoded(CODEC, encoded, tensor), tensor)


def test_fp32_copies_nothing() -> None:
    tensor = torch.randn(4, 5).t()
    codec = parse_codec("fp32")
    encoded = codec.encode(tensor)
    assert encoded.parts[0].data_ptr() == tensor.data_ptr()
    assert decoded(codec, encoded, tensor).data_ptr() == tensor.data_ptr()
