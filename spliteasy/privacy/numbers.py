"""Random numbers of a key's stream, as a tensor's initial values: the laws that torch's initializers draw by.

Uniform numbers are 24 bits of the stream (53 for double precision) times a power of two; normal ones come
in pairs by Box and Muller's method in double precision, from 53 bits each; truncated ones by the inverse
of the distribution function. Torch's own generator is never seeded here: it takes 32 bits of a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spliteasy.runtime.randomness import Key

Doubles = NDArray[np.float64]
CHUNK = 1 << 18
"""Numbers that are made at a time, from a stream of their own."""


def fill(out: Tensor, law: str, args: tuple[float, ...], key: Key) -> None:
    """Write independent numbers of the law named into `out`, in its order of elements. See `LAWS`."""
    if law == "permutation":
        out.copy_(torch.from_numpy(permutation(out.numel(), key)).to(out.dtype).view_as(out))
        return
    bits = 53 if out.dtype == torch.float64 else 24
    values = np.empty(out.numel())
    for at in range(0, values.size, CHUNK):
        count = min(CHUNK, values.size - at)
        values[at : at + count] = LAWS[law](count, bits, key.at(at // CHUNK), *args)
    out.copy_(torch.from_numpy(values).to(out.dtype).view(out.shape))


def permutation(count: int, key: Key) -> NDArray[np.int64]:
    """The numbers from 0 in random order: the order of 64-bit words of the stream."""
    return np.argsort(np.frombuffer(key.stream(8 * count), "<u8"), kind="stable").astype(np.int64)


def normal(count: int, key: Key) -> Doubles:
    """Standard normal numbers."""
    pairs = _unit(2 * ((count + 1) // 2), 53, key).reshape(2, -1)
    radius = np.sqrt(-2.0 * np.log1p(-pairs[0]))
    angle = 2.0 * math.pi * pairs[1]
    numbers: Doubles = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:count]
    return numbers


def _unit(count: int, bits: int, key: Key) -> Doubles:
    """Multiples of 2^-bits from 0, below 1."""
    width = 4 if bits <= 32 else 8
    words = np.frombuffer(key.stream(width * count), f"<u{width}")
    scaled: Doubles = (words >> np.array(8 * width - bits, words.dtype)).astype(np.float64) * 2.0**-bits
    return scaled


def _uniform(count: int, bits: int, key: Key, low: float, high: float) -> Doubles:
    numbers: Doubles = low + _unit(count, bits, key) * (high - low)
    return numbers


def _normal(count: int, _bits: int, key: Key, mean: float, std: float) -> Doubles:
    numbers: Doubles = mean + std * normal(count, key)
    return numbers


def _trunc_normal(
    count: int, _bits: int, key: Key, mean: float, std: float, low: float, high: float
) -> Doubles:
    if std == 0:
        return np.full(count, min(max(mean, low), high))
    a, b = (low - mean) / std, (high - mean) / std
    sign = 1.0
    if a > 0:  # by the lower tail, where the distribution function keeps its digits
        a, b, sign = -b, -a, -1.0
    below, under = (float(torch.special.ndtr(torch.tensor(x, dtype=torch.float64))) for x in (a, b))
    inner = below + _unit(count, 53, key) * (under - below)
    numbers: Doubles = torch.special.ndtri(torch.from_numpy(inner)).clamp(a, b).numpy()
    return np.clip(mean + std * sign * numbers, low, high)


def _bernoulli(count: int, _bits: int, key: Key, probability: float) -> Doubles:
    return (_unit(count, 53, key) < probability).astype(np.float64)


def _exponential(count: int, _bits: int, key: Key, rate: float) -> Doubles:
    numbers: Doubles = -np.log1p(-_unit(count, 53, key)) / rate
    return numbers


def _integers(count: int, _bits: int, key: Key, low: float, high: float) -> Doubles:
    return np.floor(low + _unit(count, 53, key) * (high - low))


LAWS: Mapping[str, Callable[..., Doubles]] = {
    "uniform": _uniform,
    "normal": _normal,
    "trunc_normal": _trunc_normal,
    "bernoulli": _bernoulli,
    "exponential": _exponential,
    "integers": _integers,
}
"""The generators by name: (count, bits, key, *arguments as `spliteasy.privacy.law.SOURCES` has them) ->
numbers."""
