"""The mean of a round: exact in its order, one result for every order of arrival, counters kept whole."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from spliteasy.fleet.mean import Weighted, weighted_mean
from spliteasy.fleet.parts import is_averaged, norm_layers
from spliteasy.job.spec import FleetSpec
from spliteasy.training.digest import digest_of


def test_the_mean_is_weighed_by_samples_and_rounded_once() -> None:
    parts = {"b": (1, {"model/w": torch.tensor([1.0, 2.0])}), "a": (3, {"model/w": torch.tensor([5.0, 0.1])})}
    expected = (3 * torch.tensor([5.0, 0.1]).double() + torch.tensor([1.0, 2.0]).double()) / 4
    assert torch.equal(weighted_mean(parts)["model/w"], expected.float())


def drawn_parts(devices: int) -> dict[str, Weighted]:
    generator = torch.Generator().manual_seed(7)

    def tensors() -> dict[str, Tensor]:
        return {
            "model/w": torch.randn(5, 3, generator=generator) * 10 ** torch.randn(5, 3, generator=generator),
            "model/norm.running_var": torch.rand(3, generator=generator),
            "model/norm.num_batches_tracked": torch.randint(100, (), generator=generator),
        }

    return {f"phone-{n}": (n * 7 % 50 + 1, tensors()) for n in range(devices)}


def test_a_thousand_orders_of_arrival_give_one_mean() -> None:
    parts, order = drawn_parts(9), random.Random(1)
    digests = set()
    for _ in range(1000):
        arrived = list(parts.items())
        order.shuffle(arrived)
        mean = weighted_mean(dict(arrived))
        digests.add(digest_of([mean[name] for name in sorted(mean)]))
    assert len(digests) == 1


def test_who_counts_for_nothing_changes_nothing() -> None:
    parts = drawn_parts(3)
    spoilt = {"model/w": torch.full((5, 3), float("nan"))}
    before, after = weighted_mean(parts), weighted_mean({**parts, "phone-99": (0, spoilt)})
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ValueError, match="no device counts"):
        weighted_mean({"phone-1": (0, spoilt)})


def test_integers_and_the_optimizers_counter_become_the_largest() -> None:
    few = {
        "model/n": torch.tensor(3),
        "body/optimizer/w/step": torch.tensor(2.0),
        "optimizer/w/exp_avg": torch.ones(2),
    }
    many = {"model/n": torch.tensor(8), "body/optimizer/w/step": torch.tensor(5.0)}
    mean = weighted_mean({"a": (1, few), "b": (3, many)})
    assert mean["model/n"] == 8
    assert mean["body/optimizer/w/step"] == 5.0
    assert torch.equal(mean["optimizer/w/exp_avg"], torch.full((2,), 0.25)), (
        "what b has not made counts as zeros"
    )


def test_a_device_that_is_alone_gets_its_own_numbers_back() -> None:
    alone = drawn_parts(1)["phone-0"][1]
    mean = weighted_mean({"phone-0": (17, alone)})
    assert all(torch.equal(mean[name], alone[name]) for name in alone)


def test_local_norm_keeps_whole_batch_norm_layers_and_nothing_else() -> None:
    names = ["stem.0.weight", "stem.1.weight", "stem.1.running_mean", "group.weight"]
    norms = norm_layers(names)
    local = FleetSpec(mode="splitfed", ends="own", norm="local", optimizer="average")
    averaged = [name for name in names if is_averaged(f"model/{name}", local, norms)]
    assert averaged == ["stem.0.weight", "group.weight"]
    assert not is_averaged("optimizer/stem.1.weight/momentum_buffer", local, norms)
    assert is_averaged("optimizer/stem.0.weight/momentum_buffer", local, norms)
    assert not is_averaged("trainer/step", local, norms)
    everything = FleetSpec(mode="splitfed", ends="own")
    assert all(is_averaged(f"model/{name}", everything, norms) for name in names)
    assert not is_averaged("optimizer/stem.0.weight/momentum_buffer", everything, norms)
