"""The planner's quick sums for all cuts are what cutting for real gives for each of them."""

from __future__ import annotations

from itertools import combinations

import pytest

from spliteasy.errors import JobError
from spliteasy.graph.document import ValueSpec
from spliteasy.planning.flow import Flow
from spliteasy.splitting.export import TracedModel
from tests.splitting.crossing import Crossing, crossing
from tests.splitting.networks import traced

NETWORKS = ("chain", "unet", "two inputs", "called again", "frozen", "buffers", "written in place")
BATCH = 5


def exact(model: TracedModel, *cuts: str) -> Crossing | None:
    try:
        return crossing(model, cuts)
    except JobError:
        return None


def nbytes(values: tuple[ValueSpec, ...], *, gradients: bool) -> int:
    """Return the bytes without integers, which the quick sums leave out."""
    return sum(v.bytes_for(BATCH) for v in values if not v.is_int and (v.needs_grad or not gradients))


@pytest.mark.parametrize("name", NETWORKS)
def test_single_cuts(name: str) -> None:
    _, model = traced(name)
    flow = Flow(model)
    sizes = [float(value.spec.bytes_for(BATCH)) for value in flow.values]
    up, back = flow.live(sizes, False), flow.live(sizes, True)
    legal = 0
    for index, place in enumerate(flow.places):
        there = exact(model, place.cut)
        barred = any(flow.values[v].barred for v in place.crossing)
        assert barred == (there is None), place.cut
        if there is not None:
            legal += 1
            assert up[index] == nbytes(there.up, gradients=False)
            assert back[index] == nbytes(there.up, gradients=True)
    assert legal or name == "two inputs", "its second input would cross at every single cut"


@pytest.mark.parametrize("name", NETWORKS)
def test_pairs(name: str) -> None:
    _, model = traced(name)
    flow = Flow(model)
    sizes = [float(value.spec.bytes_for(BATCH)) for value in flow.values]
    legal = 0
    for first, second in combinations(range(len(flow.places)), 2):
        there = exact(model, flow.places[first].cut, flow.places[second].cut)
        if second >= flow.barred_from(first):
            assert there is None
        if there is None:
            continue
        legal += 1
        for gradients in (False, True):
            up, down = flow.pairs_from(first, sizes, gradients)
            assert up[second] == nbytes(there.up, gradients=gradients)
            assert down[second] == nbytes(there.down, gradients=gradients)
        sent = {flow.values[v].op.name for v in flow.sent_up(first, second)}
        assert sent == {value.name for value in there.up if not value.is_int}
    assert legal


def test_no_legal_place_is_missed() -> None:
    for name in NETWORKS:
        _, model = traced(name)
        known = {place.position for place in Flow(model).places}
        for call, end in model.train.ends.items():
            if exact(model, f"{call[0]}#{call[1]}") is not None:
                assert end in known, call
