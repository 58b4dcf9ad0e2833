"""The sealed mean: devices add up numbers that broker, store and worker can't read.

Each device writes its weights, times what it counts for, as whole numbers (fixed point) modulo 2^64, and adds
a pad: a stream of the fleet's key that is used once, for this device, round and hand-in. A worker adds up
what it gets, which is exact in any order, and learns neither one device's weights nor their mean. Each device
knows the key, takes the pads off the sum, and divides. Known words at the end tell a sum of other devices.

What could leave the range is refused, never cut off. A member of the fleet knows the key: one that works with
the worker can read what the others hand in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spliteasy.errors import DataError, SplitEasyError
from spliteasy.job.spec import LEAST_SEALED, JobSpec
from spliteasy.runtime.randomness import Key

Words = NDArray[np.uint64]

SUM_BITS = 62
"""The sum of all devices stays below 2^62, so that it reads as a signed number."""

RANGE_BITS = 16
"""Weights may lie between -2^16 and 2^16."""

CHECK_WORDS = 4
LEAST_DEVICES = LEAST_SEALED
"""The sum of two tells each of them what the other has."""


class WrongSum(SplitEasyError):
    """A sealed sum is not that of the devices it names; nothing was changed."""


@dataclass(frozen=True, slots=True)
class SealedPart:
    """A device's part in a sum: the name of its pad, and its weight in the mean."""

    device: str
    nonce: str
    weight: int


def fraction_bits(spec: JobSpec, devices: int) -> int:
    """Return how many bits behind the point a round of so many devices has: the same on all of them."""
    most = spec.fleet.most_weight(spec.batch_size)
    return SUM_BITS - RANGE_BITS - (most - 1).bit_length() - (max(devices, 1) - 1).bit_length()


def fixed_point(tensors: Mapping[str, Tensor], weight: int, *, bits: int) -> NDArray[np.int64]:
    """Return all elements times `weight`, by the tensors' names, as whole numbers of 2^-bits. Raises
    DataError.
    """
    flat = []
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().to(torch.float64).reshape(-1).numpy()
        if not np.all(np.abs(values) < 2**RANGE_BITS):  # so is NaN
            raise DataError(
                f"{name} has a number that is not finite, or beyond ±{2**RANGE_BITS}: it can't be sealed",
                hint='scale the inputs, lower the learning rate, or keep batch norm local (norm = "local")',
            )
        flat.append(np.rint(values * weight * 2.0**bits).astype(np.int64))
    return np.concatenate(flat) if flat else np.zeros(0, np.int64)


def seal(tensors: Mapping[str, Tensor], part: SealedPart, *, key: Key, round_: int, bits: int) -> Tensor:
    """Return what the device hands in: one int64 number an element, and the known words. Raises DataError."""
    plain = fixed_point(tensors, part.weight, bits=bits).view(np.uint64)
    words = np.concatenate([plain, _known(key, part, round_)])
    return torch.from_numpy((words + _pad(key, part, round_, len(words))).view(np.int64))


def unseal(
    total: Tensor,
    parts: Sequence[SealedPart],
    like: Mapping[str, Tensor],
    *,
    key: Key,
    round_: int,
    bits: int,
) -> dict[str, Tensor]:
    """Return the mean of what these devices sealed, in the shapes and types of `like`. Raises WrongSum."""
    words = total.numpy().view(np.uint64).copy()
    if len(words) != sum(tensor.numel() for tensor in like.values()) + CHECK_WORDS:
        raise WrongSum("the worker sent a sum of another length than this device's head and tail have")
    if sum(part.weight > 0 for part in parts) < LEAST_DEVICES:
        raise WrongSum(f"the worker sent a sum of fewer than {LEAST_DEVICES} devices: it would not be sealed")
    known = np.zeros(CHECK_WORDS, np.uint64)
    for part in parts:
        words -= _pad(key, part, round_, len(words))
        known += _known(key, part, round_)
    if not np.array_equal(words[-CHECK_WORDS:], known):
        raise WrongSum(
            f"the sum that the worker sent for round {round_} is not that of the devices it names",
            hint="a device with another fleet key took part, or the worker did not add them all up",
        )
    return mean_of_sum(words[:-CHECK_WORDS].view(np.int64), sum(p.weight for p in parts), like, bits=bits)


def mean_of_sum(
    total: NDArray[np.int64], weight: int, like: Mapping[str, Tensor], *, bits: int
) -> dict[str, Tensor]:
    """Return the tensors that a sum of fixed-point numbers stands for: rounded to float64, divided, then
    cast.
    """
    values = total.astype(np.float64) / (weight * 2.0**bits)
    mean, start = {}, 0
    for name, tensor in sorted(like.items()):
        piece = torch.from_numpy(values[start : start + tensor.numel()])
        mean[name] = torch.empty_like(tensor).copy_(piece.to(tensor.dtype).reshape(tensor.shape))
        start += tensor.numel()
    return mean


def fixed_mean(parts: Mapping[str, tuple[int, Mapping[str, Tensor]]], *, bits: int) -> dict[str, Tensor]:
    """Return the plain integer program: the mean that sealing has to equal bit for bit."""
    found = [parts[device] for device in sorted(parts)]
    total = sum(
        (fixed_point(x, n, bits=bits) for n, x in found[1:]), fixed_point(found[0][1], found[0][0], bits=bits)
    )
    return mean_of_sum(total, sum(n for n, _ in found), found[0][1], bits=bits)


def added_up(sealed: Sequence[Tensor]) -> Tensor:
    """Return the sum of what devices sealed, modulo 2^64."""
    words = np.stack([each.numpy().view(np.uint64) for each in sealed])
    return torch.from_numpy(words.sum(axis=0, dtype=np.uint64).view(np.int64))


def _pad(key: Key, part: SealedPart, round_: int, count: int) -> Words:
    stream = key.at("pad", round_, part.device, part.nonce).stream(8 * count)
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


def _known(key: Key, part: SealedPart, round_: int) -> Words:
    stream = key.at("known", round_, part.device, part.nonce).stream(8 * CHECK_WORDS)
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)
