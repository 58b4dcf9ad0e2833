"""`fp16` and `bf16`: how far a number may move."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from spliteasy.codecs import parse_codec
from tests.codecs.samples import decoded, floats, same_bits


@pytest.mark.parametrize(
    ("name", "relative", "absolute", "largest"),
    [("fp16", 2.0**-11, 2.0**-25, 65504.0), ("bf16", 2.0**-8, 2.0**-134, 3e38)],
)
@given(tensor=floats(finite=True, dtypes=(torch.float32, torch.float64)))
def test_the_error_is_half_a_unit_of_the_last_place(
    name: str, relative: float, absolute: float, largest: float, tensor: torch.Tensor
) -> None:
    codec = parse_codec(name)
    tensor = tensor.clamp(-largest, largest)
    encoded = codec.encode(tensor)
    error = (decoded(codec, encoded, tensor).double() - tensor.double()).abs()
    # Torch narrows float64 by way of float32: two roundings.
    bound = tensor.double().abs() * relative * (1 + 2.0**-10) + absolute * (1 + 2.0**-10)
    assert (error <= bound).all()
    assert encoded.nbytes == 2 * tensor.numel()


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@given(tensor=floats(dtypes=(torch.float16, torch.bfloat16)))
def test_what_has_16_bits_already_is_left_alone(name: str, tensor: torch.Tensor) -> None:
    codec = parse_codec(name)
    assert same_bits(decoded(codec, codec.encode(tensor), tensor), tensor)


def test_what_fp16_cannot_hold_becomes_infinite() -> None:
    tensor = torch.tensor([70000.0, -1e10, 65504.0, math.nan])
    codec = parse_codec("fp16")
    back = decoded(codec, codec.encode(tensor), tensor)
    assert back[:3].tolist() == [math.inf, -math.inf, 65504.0]
    assert back[3].isnan()
