"""The costs of a run are known from shapes, at the job's batch sizes, before there is any data."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from spliteasy import load_segment
from spliteasy.errors import PortableError
from spliteasy.graph import limits
from spliteasy.graph.program import Batches
from tests.portable.test_loader import SCALE, TENSORS, document, node, ref

BATCHES = Batches(train=(8, 7), eval=(100,))


def similarities() -> dict[str, Any]:
    """A graph that compares each sample of a batch with each other."""
    transposed, compared = node("aten.t.default", ref(1)), node("aten.mm.default", ref(1), ref(2))
    return document(transposed, compared, node("aten.mm.default", ref(3), ref(1)))


def test_values_between_count_and_views_do_not() -> None:
    nodes = [SCALE, node("aten.view.default", ref(2), [-1, 4]), node("aten.relu.default", ref(3))]
    costs = load_segment(orjson.dumps(document(*nodes)), TENSORS, batches=BATCHES).program.costs
    row = 4 * 4
    assert costs.train_bytes == 8 * 3 * row, "input, product and result; at 8 samples, the larger"
    assert costs.eval_bytes == 100 * 3 * row, "the product is still there while the result is made"


def test_in_evaluation_only_what_is_there_at_a_time_counts() -> None:
    nodes = [SCALE] + [node("aten.relu.default", ref(2 + n)) for n in range(9)]
    costs = load_segment(orjson.dumps(document(*nodes)), TENSORS, batches=BATCHES).program.costs
    row = 4 * 4
    assert costs.train_bytes == 8 * 11 * row
    assert costs.eval_bytes == 100 * 3 * row


def test_a_value_that_is_too_large_at_the_jobs_batch_only_is_refused() -> None:
    """The value is far from any limit at two samples."""
    graph = similarities()
    assert limits.BATCH_ELEMENTS < 60_000**2
    load_segment(orjson.dumps(graph), TENSORS, batches=Batches(train=(1000,), eval=(1000,)))
    for batches in (Batches(train=(60_000,), eval=(2,)), Batches(train=(2,), eval=(60_000,))):
        with pytest.raises(PortableError, match=r"node 1: makes a tensor of shape \(60000, 60000\)"):
            load_segment(orjson.dumps(graph), TENSORS, batches=batches)


def test_the_costs_of_a_batch_squared_are_known() -> None:
    costs = load_segment(orjson.dumps(similarities()), TENSORS, batches=BATCHES).program.costs
    assert costs.train_bytes == 4 * (8 * 4 + 8 * 8 + 8 * 4)
