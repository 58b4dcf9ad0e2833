"""`int8`: error bound, channels, unbiased rounding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spliteasy.codecs import parse_codec
from tests.codecs.samples import decoded, floats, seeds

CODEC = parse_codec("int8")
LARGEST_SCALE_EXCESS = 1 + 2.0**-7 + 2.0**-22
"""The excess comes from rounding up to bfloat16, and from the division."""


def channel_dim(tensor: torch.Tensor) -> int | None:
    return None if tensor.dim() < 2 else 1 if tensor.dim() > 3 else tensor.dim() - 1


def scale_bound(tensor: torch.Tensor) -> torch.Tensor:
    """The largest scale that each element's channel may have."""
    dim = channel_dim(tensor)
    others = [other for other in range(tensor.dim()) if other != dim]
    largest = tensor.double().abs().amax(others, keepdim=True) if others else tensor.double().abs()
    return largest / 127 * LARGEST_SCALE_EXCESS + 2.0**-119


@given(floats(finite=True), st.none() | seeds)
def test_the_error_is_half_a_scale_or_one_scale_at_random(tensor: torch.Tensor, seed: int | None) -> None:
    back = decoded(CODEC, CODEC.encode(tensor, seed=seed), tensor).double()
    own_rounding = tensor.double().abs() * torch.finfo(tensor.dtype).eps * 2
    bound = scale_bound(tensor) * (0.5 + 1e-5 if seed is None else 1) + own_rounding
    if tensor.dtype is torch.float16:
        bound = bound + 2.0**-24
    assert ((back - tensor.double()).abs() <= bound).all()


@given(floats(finite=True), st.none() | seeds)
def test_zeros_come_back_as_zeros(tensor: torch.Tensor, seed: int | None) -> None:
    back = decoded(CODEC, CODEC.encode(tensor, seed=seed), tensor)
    assert (back[tensor == 0] == 0).all()


@given(st.integers(0, 1000), st.floats(1e-3, 1e3), seeds)
def test_no_element_wraps_around(generator_seed: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(generator_seed)
    tensor = (torch.rand(64, generator=generator) - 0.5).sign() * size
    back = decoded(CODEC, CODEC.encode(tensor, seed=seed), tensor)
    assert torch.equal(back.sign(), tensor.sign())
    assert int(CODEC.encode(tensor, seed=seed).parts[0].min()) >= -127


def test_the_largest_element_never_wraps_around_at_any_scale() -> None:
    """Roundings could carry the largest element, dithered, to 128 scales, which is -128, where it is 127
    scales exactly.

    These are all scales but for powers of two, which change no rounding.
    """
    scales = torch.arange(128, 256, dtype=torch.float32)
    tensor = (127 * scales).expand(1 << 16, 128)
    assert int(CODEC.encode(tensor, seed=1).parts[0].min()) == 127


def mean_error(tensor: torch.Tensor, draws: range) -> torch.Tensor:
    total = torch.zeros_like(tensor, dtype=torch.float64)
    for seed in draws:
        total += decoded(CODEC, CODEC.encode(tensor, seed=seed), tensor).double() - tensor.double()
    return total / len(draws)


@pytest.mark.parametrize("shape", [(4000,), (40, 100), (10, 20, 4, 5), (2, 4, 16, 32)])
def test_rounding_at_random_is_unbiased(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    draws = range(400)
    scale = scale_bound(tensor)
    error = mean_error(tensor, draws) / scale
    # An error is spread over one scale by at most half a scale (that of a coin toss).
    assert (error.abs() <= 5.5 * 0.5 / math.sqrt(len(draws))).all()
    assert abs(float(error.mean())) <= 5 * 0.5 / math.sqrt(len(draws) * tensor.numel())
    nearest = (decoded(CODEC, CODEC.encode(tensor), tensor) - tensor).double() / scale
    assert (nearest.abs() > 5.5 * 0.5 / math.sqrt(len(draws))).any(), "the bound would hold for any rounding"


def test_random_bits_differ_between_seeds_and_between_elements() -> None:
    tensor = torch.full((1 << 18,), 0.25)
    tensor[0] = 1
    first, second = (CODEC.encode(tensor, seed=seed).parts[0][1:].double() for seed in (1, 2))
    up, other = first - first.min(), second - second.min()
    assert up.max() == 1
    for a, b in ((up, other), (up[:-1], up[1:]), (up[: 1 << 17], up[-(1 << 17) :])):
        both = torch.stack([a, b])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 5 / math.sqrt(len(a))


def test_one_channel_does_not_coarsen_another() -> None:
    images = torch.randn(4, 3, 5, 5)
    images[:, 1] *= 1e6
    tokens = images.permute(0, 2, 3, 1).reshape(4, 25, 3)
    for tensor, dim in ((images, 1), (tokens, 2)):
        back = decoded(CODEC, CODEC.encode(tensor), tensor)
        error = (back - tensor).abs().amax([other for other in range(tensor.dim()) if other != dim])
        assert error[0] < 0.02
        assert error[2] < 0.02


def test_a_channel_that_is_not_finite_comes_back_as_nan_and_the_others_as_numbers() -> None:
    for value in (math.nan, math.inf, -math.inf):
        for seed in (None, 3):
            tensor = torch.ones(4, 3, 2, 2)
            tensor[2, 1, 0, 1] = value
            back = decoded(CODEC, CODEC.encode(tensor, seed=seed), tensor)
            assert back[:, 1].isnan().all()
            assert torch.allclose(back[:, [0, 2]], torch.ones(4, 2, 2, 2), rtol=0.01)


def test_the_format_stays_what_it_is() -> None:
    """Fixed bits: old messages in logs must decode to the same numbers, on any machine."""
    tensor = torch.tensor([[1.0, -3.0], [0.5, 100.0], [-0.26, 0.0]])
    encoded = CODEC.encode(tensor)
    assert encoded.parts[0].tolist() == [126, -4, 63, 127, -33, 0]
    assert encoded.parts[1].tolist() == [0.0079345703125, 0.7890625]
    back = decoded(CODEC, encoded, tensor)
    expected = [[0.999755859375, -3.15625], [0.4998779296875, 100.2109375], [-0.2618408203125, 0.0]]
    assert back.tolist() == expected
    dithered = CODEC.encode(torch.linspace(-1, 1, 12), seed=2**63 + 5)
    assert dithered.parts[0].tolist() == [-126, -103, -80, -57, -35, -11, 12, 34, 57, 80, 103, 127]


@pytest.mark.parametrize("shape", [(64, 64, 8, 8), (32, 100), (32, 64), (8, 197, 384)])
def test_the_goal_in_bytes_is_met(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    assert CODEC.encode(tensor).nbytes <= 0.27 * tensor.nbytes
