"""Split training is the same training, bit for bit, for every kind of model at cuts of every kind."""

from __future__ import annotations

import random

import pytest
import torch

from spliteasy.errors import CutError
from spliteasy.splitting.export import TracedModel
from spliteasy.splitting.places import cut_places
from spliteasy.splitting.split import Split, split_traced
from tests.splitting.networks import ALL, LARGE, SMALL, Cuts, traced
from tests.splitting.parity import compare

CASES = [pytest.param(name, cuts, id=f"{name}: {cuts}") for name in SMALL for cuts in SMALL[name].cuts]
LARGE_CASES = [pytest.param(name, cuts, id=f"{name}: {cuts}") for name in LARGE for cuts in LARGE[name].cuts]
SWEPT = ("swin", "unet", "written in place", "mobilenetv2")
ROUNDING = 2.0**-23


def differing(name: str, split: Split) -> dict[str, float]:
    network = ALL[name]
    model, _ = traced(name)
    torch.manual_seed(1)
    return compare(model, split, [network.batch(size) for size in network.sizes], network.lr)


@pytest.fixture(autouse=True)
def plain_attention() -> None:
    """torch's encoder layer has a fused path of its own for evaluation, with other last bits."""
    torch.backends.mha.set_fastpath_enabled(False)


@pytest.mark.parametrize(("name", "cuts"), CASES)
def test_same_bits(name: str, cuts: Cuts) -> None:
    split = split_traced(traced(name)[1], cuts)
    assert split.regrouped == ()
    assert differing(name, split) == {}


@pytest.mark.long
@pytest.mark.parametrize(("name", "cuts"), LARGE_CASES)
def test_same_bits_in_large_networks(name: str, cuts: Cuts) -> None:
    split = split_traced(traced(name)[1], cuts)
    assert all(len(segment.graph_json()) <= 400_000 for segment in split.segments)
    assert differing(name, split) == {}


@pytest.mark.long
@pytest.mark.parametrize("name", SWEPT)
def test_sweep_over_places(name: str) -> None:
    """Every place of a single cut, and random pairs."""
    _, model = traced(name)
    names = [place for place, _, _ in cut_places(model.train)]
    pairs = [(first, second) for index, first in enumerate(names) for second in names[index + 1 :]]
    cuts: list[Cuts] = [*names, *random.Random(0).sample(pairs, min(60, len(pairs)))]
    tried = [found for found in (differing_at(name, model, place) for place in cuts) if found is not None]
    assert len(tried) > 20
    assert [found for found in tried if found[1]] == []


def differing_at(name: str, model: TracedModel, cuts: Cuts) -> tuple[Cuts, dict[str, float]] | None:
    """None where the cut is refused, or adds a gradient in another order and says so."""
    try:
        split = split_traced(model, cuts)
    except CutError:
        return None
    return None if split.regrouped else (cuts, differing(name, split))
