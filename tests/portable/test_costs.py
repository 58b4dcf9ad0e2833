"""The costs of a run are known from shapes, at the job's batch sizes, before there is any data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
import pytest
import torch
import torch.nn.functional as F

from spliteasy import load_segment
from spliteasy.errors import PortableError
from spliteasy.graph import limits
from spliteasy.graph.flops import FlopCounter
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


def test_operations_are_estimated_at_the_jobs_batch() -> None:
    costs = load_segment(orjson.dumps(similarities()), TENSORS, batches=BATCHES).program.costs
    assert costs.train_flops == 2 * (8 * 8 * 4) + 2 * (8 * 8 * 4)
    assert costs.eval_flops == 2 * (100 * 100 * 4) + 2 * (100 * 100 * 4)


CALLS: dict[str, tuple[Callable[..., object], list[tuple[int, ...]], int]] = {
    "linear": (F.linear, [(4, 5, 6), (7, 6), (7,)], 2 * 4 * 5 * 6 * 7),
    "batched product": (torch.matmul, [(3, 4, 5), (3, 5, 6)], 2 * 3 * 4 * 5 * 6),
    "matrix and vector": (torch.matmul, [(4, 5), (5,)], 2 * 4 * 5),
    "vectors": (torch.matmul, [(5,), (5,)], 2 * 5),
    "einsum": (partial(torch.einsum, "bij,bjk->bik"), [(3, 4, 5), (3, 5, 6)], 2 * 3 * 4 * 5 * 6),
    "grouped convolution": (
        partial(F.conv2d, padding=1, groups=2),
        [(2, 4, 8, 8), (6, 2, 3, 3)],
        2 * (2 * 6 * 8 * 8) * (2 * 3 * 3),
    ),
    "transposed convolution": (
        F.conv_transpose2d,
        [(2, 4, 8, 8), (4, 6, 3, 3)],
        2 * (2 * 4 * 8 * 8) * (6 * 3 * 3),
    ),
    "bilinear": (F.bilinear, [(4, 3), (4, 5), (6, 3, 5)], 2 * 4 * 6 * 3 * 5),
    "distances": (torch.cdist, [(4, 3), (6, 3)], 3 * 4 * 6 * 3),
    "pooling": (partial(F.max_pool2d, kernel_size=2), [(2, 3, 8, 8)], 2 * 3 * 8 * 8 * 4),
    "adaptive pooling": (partial(F.adaptive_avg_pool2d, output_size=7), [(2, 3, 8, 8)], 2 * 3 * 8 * 8),
    "a pass over the elements": (torch.sin, [(9,)], 9),
    "norm": (torch.linalg.vector_norm, [(9,)], 9),
    "a view": (lambda x: x.view(20)[3:].unsqueeze(0), [(4, 5)], 0),
}


@pytest.mark.parametrize("name", CALLS)
def test_operators_count_as_the_products_that_they_are_made_of(name: str) -> None:
    call, shapes, expected = CALLS[name]
    inputs = [torch.empty(shape, device="meta", requires_grad=True) for shape in shapes]
    with FlopCounter() as counter:
        call(*inputs)
    assert counter.flops == expected


def test_attention_counts_every_pair_and_a_factorisation_the_cube() -> None:
    query, key, matrices = (
        torch.empty(shape, device="meta") for shape in ((2, 4, 8, 16), (2, 4, 9, 16), (3, 50, 50))
    )
    with FlopCounter() as attention:
        F.scaled_dot_product_attention(query, key, key)
    products = 2 * 2 * (2 * 4 * 8 * 9 * 16)
    assert products <= attention.flops < 1.5 * products
    with FlopCounter() as inverse:
        torch.linalg.inv(matrices)
    assert 3 * 50**3 <= inverse.flops < 2 * 3 * 50**3
