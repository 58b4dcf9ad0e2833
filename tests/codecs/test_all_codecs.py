"""Every codec keeps shape and order of dimensions, shows errors, and is a pure function."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.envelope import decode_tensor, encode_tensor
from spliteasy.codecs import parse_codec
from tests.codecs.samples import NAMES, decoded, floats, same_bits, seeds

names = st.sampled_from(NAMES)
maybe_seeds = st.none() | seeds


@given(names, floats(), maybe_seeds)
def test_shape_dtype_and_dimension_order_come_back(name: str, tensor: torch.Tensor, seed: int | None) -> None:
    codec = parse_codec(name)
    back = decoded(codec, codec.encode(tensor, seed=seed), tensor)
    assert (back.shape, back.dtype, back.stride()) == (tensor.shape, tensor.dtype, tensor.stride())


@given(names, floats(), maybe_seeds)
def test_what_is_not_finite_stays_visible(name: str, tensor: torch.Tensor, seed: int | None) -> None:
    codec = parse_codec(name)
    encoded = codec.encode(tensor, seed=seed)
    back = decoded(codec, encoded, tensor)
    kept = back if encoded.memory is None else back + encoded.memory
    assert not kept[~tensor.isfinite()].isfinite().any()
    assert bool(back.isfinite().all()) <= bool(tensor.isfinite().all())


@given(names, floats(), maybe_seeds)
def test_encoding_is_a_function_of_its_arguments_and_changes_none(
    name: str, tensor: torch.Tensor, seed: int | None
) -> None:
    codec = parse_codec(name)
    before, generator = tensor.clone(), torch.random.get_rng_state()
    memory = torch.ones_like(tensor)
    first = codec.encode(tensor, seed=seed, memory=memory)
    torch.rand(1)
    second = codec.encode(tensor, seed=seed, memory=memory)
    torch.random.set_rng_state(generator)
    third = parse_codec(name).encode(tensor, seed=seed, memory=memory)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert same_bits(tensor, before)
    assert torch.equal(memory, torch.ones_like(tensor))
    for other in (second, third):
        assert other.meta == first.meta
        assert all(same_bits(a, b) for a, b in zip(first.parts, other.parts, strict=True))


@given(names, floats(), maybe_seeds)
def test_decoding_needs_the_message_alone_and_changes_nothing(
    name: str, tensor: torch.Tensor, seed: int | None
) -> None:
    codec = parse_codec(name)
    encoded = codec.encode(tensor, seed=seed)
    back = decoded(codec, encoded, tensor)
    read_only = [decode_tensor(encode_tensor(part)) for part in encoded.parts]
    again = parse_codec(name).decode(read_only, encoded.meta, shape=tensor.shape, dtype=tensor.dtype)
    assert same_bits(back, again)
    assert all(same_bits(a, b) for a, b in zip(encoded.parts, read_only, strict=True))


@given(
    names,
    st.sampled_from(
        [
            torch.arange(6, dtype=torch.int32).view(2, 3).t(),
            torch.tensor(7),
            torch.tensor([[True, False]]),
            torch.empty(0, 4),
            torch.empty(3, 0, 2).transpose(0, 1),
        ]
    ),
)
def test_integers_masks_and_empty_tensors_travel_as_they_are(name: str, tensor: torch.Tensor) -> None:
    codec = parse_codec(name)
    encoded = codec.encode(tensor, seed=1)
    assert encoded.parts[0] is not None
    assert (len(encoded.parts), encoded.meta, encoded.memory) == (1, {}, None)
    back = decoded(codec, encoded, tensor)
    assert torch.equal(back, tensor)
    assert (back.dtype, back.stride()) == (tensor.dtype, tensor.stride())


@given(names)
def test_a_tensor_with_gaps_or_a_gradient_is_packed_as_its_values(name: str) -> None:
    codec = parse_codec(name)
    base = torch.randn(4, 6, requires_grad=True)
    for tensor in (base, base[:, ::2], base[:1].expand(4, 6)):
        plain = tensor.detach().clone(memory_format=torch.contiguous_format)
        one, other = codec.encode(tensor, seed=3), codec.encode(plain, seed=3)
        assert torch.equal(decoded(codec, one, plain), decoded(codec, other, plain))
        assert not one.parts[0].requires_grad


def test_a_packed_tensor_is_never_larger_than_the_plain_one_by_more_than_a_scale() -> None:
    for name in NAMES:
        for shape in ((1,), (1, 1), (32, 10), (2, 3, 4, 5)):
            tensor = torch.randn(shape)
            assert parse_codec(name).encode(tensor).nbytes <= tensor.nbytes + 4


@given(names, st.integers(1, 5), st.integers(1, 5))
def test_memory_formats_survive_dimensions_of_size_one(name: str, batch: int, size: int) -> None:
    """Torch's kernels read the memory format from strides that are never walked."""
    codec = parse_codec(name)
    image = torch.randn(batch, 1, size, size).to(memory_format=torch.channels_last)
    odd = torch.randn(batch, size).as_strided((batch, 1, size), (size, 77, 1))
    for tensor in (image, odd):
        encoded = codec.encode(tensor)
        assert decoded(codec, encoded, tensor).stride() == tensor.stride()
        assert encoded.memory is None or encoded.memory.stride() == tensor.stride()
