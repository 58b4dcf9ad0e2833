"""Tensors to pack: any dtype, shape and dimension order, with zeros, extremes and non-finite values."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from spliteasy.codecs import Codec, Encoded

NAMES = ("fp32", "lossless", "fp16", "bf16", "int8", "topk:0.03", "topk:0.3")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

shapes = st.lists(st.integers(1, 9), max_size=5).map(tuple)
seeds = st.integers(0, 2**63 - 1)


@st.composite
def floats(draw: st.DrawFn, *, finite: bool = False, dtypes: tuple[torch.dtype, ...] = FLOATS) -> Tensor:
    """A dense tensor whose dimensions lie in memory in any order."""
    shape = draw(shapes)
    order = draw(st.permutations(range(len(shape))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    flat = torch.randn(math.prod(shape), generator=generator, dtype=torch.float64)
    flat *= 10.0 ** draw(st.integers(-12, 4))
    flat[torch.rand(len(flat), generator=generator) < draw(st.sampled_from([0, 0.5, 0.97, 1]))] = 0
    specials = [-0.0, 1e-30, 300.0] + ([] if finite else [math.nan, math.inf, -math.inf, 1e6])
    for value in draw(st.lists(st.sampled_from(specials), max_size=3)):
        flat[int(torch.randint(len(flat), (1,), generator=generator))] = value
    tensor = flat.to(draw(st.sampled_from(dtypes))).view([shape[dim] for dim in order])
    return tensor.permute([order.index(dim) for dim in range(len(shape))])


def decoded(codec: Codec, encoded: Encoded, like: Tensor) -> Tensor:
    return codec.decode(encoded.parts, encoded.meta, shape=like.shape, dtype=like.dtype)


def bits(tensor: Tensor) -> Tensor:
    """The elements' bits as integers: equal for equal NaNs, different for 0.0 and -0.0."""
    return tensor.contiguous().view(-1).view(INTS[tensor.dtype.itemsize])


def same_bits(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype) and torch.equal(bits(one), bits(other))
