"""A chain of modules, split at every place."""

from __future__ import annotations

import copy

import pytest
import torch

from spliteasy import load_segment, split
from spliteasy.graph.segment import load_segment_tensors, segment_tensors_bytes
from tests.models.chains import Chain
from tests.splitting.parity import compare


@pytest.mark.parametrize(
    "cuts", ["stem", "mid.0", "mid", "pool", ("stem", "pool"), ("stem.1", "mid.1.0"), ("mid.0.0", "mid.0.1")]
)
def test_same_bits_as_the_plain_model(cuts: str | tuple[str, str]) -> None:
    model = Chain()
    batches = [(torch.randn(size, 1, 8, 8),) for size in (4, 4, 3)]
    assert compare(model, split(model, batches[0], cuts), batches) == {}


def test_names_are_the_models() -> None:
    model = Chain()
    parts = split(model, torch.randn(2, 1, 8, 8), ("stem", "pool"))
    state = parts.state_dict()
    assert state.keys() == model.state_dict().keys()
    fresh = Chain()
    fresh.load_state_dict(state)
    parts.load_state_dict(copy.deepcopy(fresh.state_dict()))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in parts.state_dict().items())


def test_travels_as_bytes() -> None:
    model = Chain()
    batches = [(torch.randn(4, 1, 8, 8),)]
    parts = split(model, batches[0], ("stem", "pool"))
    for segment in parts.segments:
        loaded = load_segment(segment.graph_json(), load_segment_tensors(segment_tensors_bytes(segment)))
        assert loaded.graph_json() == segment.graph_json()
        assert segment_tensors_bytes(loaded) == segment_tensors_bytes(segment)
        assert loaded.state_dict().keys() == segment.state_dict().keys()
