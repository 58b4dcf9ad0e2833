"""The sealed mean: the plain integer program bit for bit, and nothing to read for whoever has no key."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from spliteasy.errors import DataError
from spliteasy.fleet.sealed import (
    CHECK_WORDS,
    RANGE_BITS,
    SealedPart,
    WrongSum,
    added_up,
    fixed_mean,
    fraction_bits,
    seal,
    unseal,
)
from spliteasy.job.spec import JobSpec
from spliteasy.runtime.randomness import Key

KEY = Key(bytes(range(32)))
BITS = 30
ROUND = 7


def drawn(devices: int) -> dict[str, tuple[int, dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(3)

    def tensors() -> dict[str, Tensor]:
        weight = torch.randn(4, 3, generator=generator) * 10 ** torch.randn(4, 3, generator=generator)
        return {"head/model/w": weight, "tail/model/b": torch.randn((), generator=generator)}

    return {f"phone-{n}": (n * 13 % 7 + 1, tensors()) for n in range(devices)}


def sealed(
    parts: dict[str, tuple[int, dict[str, Tensor]]], key: Key = KEY
) -> tuple[list[SealedPart], list[Tensor]]:
    about = [SealedPart(device, f"{n:016x}", weight) for n, (device, (weight, _)) in enumerate(parts.items())]
    bodies = [
        seal(tensors, part, key=key, round_=ROUND, bits=BITS)
        for part, (_, tensors) in zip(about, parts.values(), strict=True)
    ]
    return about, bodies


def test_the_sum_opens_to_the_plain_integer_mean_in_any_order_of_arrival() -> None:
    parts, order = drawn(9), random.Random(2)
    expected, like = fixed_mean(parts, bits=BITS), parts["phone-0"][1]
    about, bodies = sealed(parts)
    for _ in range(50):
        order.shuffle(bodies)
        mean = unseal(added_up(bodies), about, like, key=KEY, round_=ROUND, bits=BITS)
        assert all(torch.equal(mean[name], expected[name]) for name in like)


def test_a_third_of_the_devices_may_be_missing() -> None:
    parts = drawn(9)
    about, bodies = sealed(parts)
    present = dict(list(parts.items())[:6])
    mean = unseal(added_up(bodies[:6]), about[:6], parts["phone-0"][1], key=KEY, round_=ROUND, bits=BITS)
    expected = fixed_mean(present, bits=BITS)
    assert all(torch.equal(mean[name], expected[name]) for name in expected)


def test_the_integer_mean_is_close_to_the_mean() -> None:
    parts = drawn(5)
    total = sum(n for n, _ in parts.values())
    exact = sum(n * x["head/model/w"].double() for n, x in parts.values()) / total
    assert torch.allclose(
        fixed_mean(parts, bits=BITS)["head/model/w"].double(), exact, atol=2**-20, rtol=1e-6
    )


def test_what_is_handed_in_tells_nothing_without_the_key() -> None:
    """Two hand-ins of the same weights are unlike, and zeros do not show as zeros."""
    _, tensors = drawn(1)["phone-0"]
    first, second = (
        seal(tensors, SealedPart("phone-0", nonce, 1), key=KEY, round_=ROUND, bits=BITS)
        for nonce in ("aa" * 8, "bb" * 8)
    )
    assert not torch.equal(first, second)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    hidden = seal(zeros, SealedPart("phone-0", "aa" * 8, 1), key=KEY, round_=ROUND, bits=BITS)
    assert bool((hidden.abs() > 2**40).any()), "zeros do not show as such"


@pytest.mark.parametrize("broken", ["one left out", "another round", "another key", "a word changed"])
def test_a_sum_of_something_else_is_found(broken: str) -> None:
    parts = drawn(5)
    about, bodies = sealed(parts)
    key, round_ = KEY, ROUND
    if broken == "one left out":
        bodies = bodies[:-1]
    elif broken == "another round":
        round_ += 1
    elif broken == "another key":
        stranger = Key(bytes(32))
        bodies[0] = seal(parts["phone-0"][1], about[0], key=stranger, round_=ROUND, bits=BITS)
    else:
        bodies[0][-1] += 1
    with pytest.raises(WrongSum, match="is not that of the devices"):
        unseal(added_up(bodies), about, parts["phone-0"][1], key=key, round_=round_, bits=BITS)


def test_a_sum_of_two_is_refused_and_so_is_one_of_another_length() -> None:
    parts = drawn(4)
    about, bodies = sealed(parts)
    like = parts["phone-0"][1]
    with pytest.raises(WrongSum, match="fewer than 3"):
        unseal(added_up(bodies[:2]), about[:2], like, key=KEY, round_=ROUND, bits=BITS)
    nobody = [SealedPart(each.device, each.nonce, 0) for each in about]
    with pytest.raises(WrongSum, match="fewer than 3"):
        unseal(added_up(bodies), nobody, like, key=KEY, round_=ROUND, bits=BITS)
    with pytest.raises(WrongSum, match="another length"):
        unseal(torch.zeros(CHECK_WORDS, dtype=torch.int64), about, like, key=KEY, round_=ROUND, bits=BITS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float(2**RANGE_BITS), 1e30])
def test_what_leaves_the_range_is_refused_never_cut_off(value: float) -> None:
    part = SealedPart("phone-0", "aa" * 8, 1)
    with pytest.raises(DataError, match="can't be sealed"):
        seal({"w": torch.tensor([0.0, value])}, part, key=KEY, round_=1, bits=BITS)


def test_the_largest_sum_of_a_round_fits() -> None:
    spec = JobSpec.model_validate(
        {
            "name": "job", "batch_size": 32, "epochs": 1,
            "model": {"factory": "m:f", "example": "m:e", "cuts": ("a", "b")},
            "loss": {"name": "mse"}, "optimizer": {"name": "sgd", "lr": 0.1},
            "fleet": {"mode": "splitfed", "round_steps": 10},
        }
    )  # fmt: skip
    devices, weight = 5, 320
    bits = fraction_bits(spec, devices)
    largest = float(2**RANGE_BITS) * (1 - 2**-24)
    parts = {f"phone-{n}": (weight, {"w": torch.tensor([largest, -largest])}) for n in range(devices)}
    about = [SealedPart(device, f"{n:016x}", weight) for n, device in enumerate(parts)]
    bodies = [seal(parts[part.device][1], part, key=KEY, round_=1, bits=bits) for part in about]
    mean = unseal(added_up(bodies), about, parts["phone-0"][1], key=KEY, round_=1, bits=bits)
    assert mean["w"].tolist() == [largest, -largest]
