"""What a kernel of an accelerator would not survive is found before it, and only that."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from spliteasy.errors import DataError
from spliteasy.graph.index_checks import check_of, checked_names
from spliteasy.graph.operators import ATEN
from tests.engine.standin import DEVICE

T, F = torch.tensor, torch.float32
TABLE = torch.arange(12, dtype=F).reshape(4, 3)
SCORES, PICTURE = torch.zeros(2, 3), torch.zeros(1, 3, 2, 2)

CASES: dict[str, tuple[Callable[[Any], tuple[Any, ...]], Any, Any]] = {
    "aten.embedding.default": (lambda x: (TABLE, x), T([0, 3]), T([0, 4])),
    "aten.index_select.default": (lambda x: (TABLE, 1, x), T([2]), T([-1])),
    "aten.gather.default": (lambda x: (TABLE, -1, x), T([[2], [0]]), T([[3], [0]])),
    "aten.take.default": (lambda x: (TABLE, x), T([-12, 11]), T([12])),
    "aten.take_along_dim.default": (lambda x: (TABLE, x), T([11]), T([12])),
    "aten.index.Tensor": (lambda x: (TABLE, [None, x]), T([-3, 2]), T([3])),
    "aten._unsafe_index.Tensor": (lambda x: (TABLE, [x]), T([3, -4]), T([-5])),
    "aten.index_put.default": (lambda x: (TABLE, [x], T(1.0)), T([3]), T([4])),
    "aten._unsafe_index_put.default": (lambda x: (TABLE, [x], T(1.0)), T([3]), T([4])),
    "aten.index_add.default": (lambda x: (TABLE, 0, x, TABLE[:1]), T([3]), T([4])),
    "aten.index_copy.default": (lambda x: (TABLE, 0, x, TABLE[:1]), T([3]), T([4])),
    "aten.index_reduce.default": (lambda x: (TABLE, 0, x, TABLE[:1], "amax"), T([3]), T([4])),
    "aten.index_fill.int_Scalar": (lambda x: (TABLE, 0, x, 1.0), T([-4]), T([4])),
    "aten.put.default": (lambda x: (TABLE, x, T([1.0])), T([-12]), T([12])),
    "aten.scatter.value": (lambda x: (TABLE, 0, x, 1.0), T([[3]]), T([[4]])),
    "aten.scatter_add.default": (lambda x: (TABLE, 0, x, TABLE), T([[3]]), T([[-1]])),
    "aten.scatter_reduce.two": (lambda x: (TABLE, 0, x, TABLE, "sum"), T([[3]]), T([[4]])),
    "aten.masked_scatter.default": (
        lambda x: (TABLE, x, T([1.0])),
        TABLE == 3,
        TABLE >= 3,
    ),
    "aten.nll_loss.default": (lambda x: (SCORES, x), T([2, -100]), T([3, 0])),
    "aten.nll_loss_nd.default": (lambda x: (SCORES, x), T([2, 0]), T([-1, 0])),
    "aten.nll_loss2d.default": (lambda x: (PICTURE, x), T([[[2, 0], [0, -100]]]), T([[[3, 0], [0, 0]]])),
    "aten.cross_entropy_loss.default": (lambda x: (SCORES, x), T([2, -100]), T([3, 0])),
    "aten.multi_margin_loss.default": (lambda x: (SCORES, x), T([2, 0]), T([3, 0])),
    "aten.multilabel_margin_loss.default": (
        lambda x: (SCORES, x), T([[2, -1, 0], [0, -1, 0]]), T([[3, 0, 0], [0, 0, 0]])
    ),
    "aten.one_hot.default": (lambda x: (x, 3), T([0, 2]), T([3])),
    "aten.max_unpool2d.default": (lambda x: (torch.ones(1, 1, 1), x, [2, 2]), T([[[3]]]), T([[[4]]])),
    "aten.max_unpool3d.default": (
        lambda x: (torch.ones(1, 1, 1, 1), x, [2, 2, 2], [2, 2, 2], [0, 0, 0]), T([[[[7]]]]), T([[[[8]]]])
    ),
    "aten.quantile.default": (lambda x: (TABLE, x), T(1.0), T(1.5)),
    "aten.nanquantile.default": (lambda x: (TABLE, x), T(0.0), T(-0.5)),
    "aten.multinomial.default": (lambda x: (x, 1), T([0.0, 2.0]), T([-1.0, 2.0])),
    "aten.bernoulli.default": (lambda x: (x,), T([0.0, 1.0]), T([1.1])),
    "aten.bernoulli.Tensor": (lambda x: (TABLE, x), T(0.5), T(float("nan"))),
    "aten.poisson.default": (lambda x: (x,), T([0.0, 3.0]), T([-1.0])),
    "aten.binary_cross_entropy.default": (lambda x: (x, T([0.0, 1.0])), T([0.0, 1.0]), T([0.5, 1.5])),
    "aten.embedding_bag.padding_idx": (
        lambda x: (TABLE, x, T([0, 1]), False, 0, False, None, False, None), T([0, 3]), T([0, 4])
    ),
}  # fmt: skip
"""A call of each operator by what stands in question: a value that it takes, and one beyond."""

SILENT = {"aten._unsafe_index.Tensor", "aten._unsafe_index_put.default"}
"""Operators whose kernel on a CPU may let a wrong place pass."""

NAMES_OF_PLACES = re.compile(r"indices|index|target|mask|q|offsets")
HARMLESS = {
    *("where", "masked_fill", "masked_fill_", "scaled_dot_product_attention", "ctc_loss"),
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "soft_margin_loss"),
    *("binary_cross_entropy_with_logits", "hinge_embedding_loss", "cosine_embedding_loss"),
    *("margin_ranking_loss", "poisson_nll_loss", "split", "tensor_split", "triplet_margin_loss"),
}
"""Operators with an argument of such a name whose values are no places, or are checked by `guarded`."""


@pytest.mark.parametrize("name", CASES)
def test_a_place_that_is_not_there_is_found_and_no_other(name: str) -> None:
    arguments, fine, wrong = CASES[name]
    _, base, overload = name.split(".")
    call, check = getattr(getattr(torch.ops.aten, base), overload), check_of(name)
    assert check is not None
    check(*arguments(fine))
    call(*arguments(fine))
    with pytest.raises(DataError, match=re.escape(base)):
        check(*arguments(wrong))
    if name not in SILENT:
        with pytest.raises((IndexError, RuntimeError)):
            call(*arguments(wrong))


def test_arguments_by_name_are_looked_at_too() -> None:
    check = check_of("aten.index_select.default")
    assert check is not None
    with pytest.raises(DataError):
        check(TABLE, index=T([9]), dim=0)


def test_no_operator_that_takes_places_is_without_a_check() -> None:
    lacking = set()
    for name in ATEN:
        _, base, overload = name.split(".")
        schema = getattr(getattr(torch.ops.aten, base), overload)._schema
        tensors = [each.name for each in schema.arguments if "Tensor" in str(each.type)]
        if any(NAMES_OF_PLACES.fullmatch(each) for each in tensors) and check_of(name) is None:
            lacking.add(base)
    assert lacking <= HARMLESS
    assert {name.split(".")[1] for name in CASES} <= checked_names()


def test_a_graph_looks_on_an_accelerator_alone() -> None:
    from spliteasy.graph.document import Document, FreeDim, Graph, Node, TensorSpec, ValueSpec
    from spliteasy.graph.encoding import document_to_json
    from spliteasy.graph.segment import load_segment

    places = ValueSpec(name="x", dtype="int64", shape=(FreeDim(batch=1),), needs_grad=False)
    rows = ValueSpec(name="y", dtype="float32", shape=(FreeDim(batch=1), 3))
    graph = Graph(
        inputs=(places,),
        nodes=(Node(op="aten.embedding.default", args=({"ref": 0}, {"ref": 1})),),
        results=(2,),
        outputs=(rows,),
        wire=1,
    )
    table = TensorSpec(names=("table",), kind="parameter", dtype="float32", shape=(4, 3))
    document = Document(name="body", tensors=(table,), train=graph, eval=graph)
    here = load_segment(document_to_json(document), {"table": TABLE})
    there = here.on(DEVICE)
    assert there.on(DEVICE) is there
    assert torch.equal(there(T([3, 0]).to(DEVICE))[0].cpu(), here(T([3, 0]))[0])  # type: ignore[union-attr]
    with pytest.raises(IndexError):
        here(T([4]))
    with pytest.raises(DataError, match="embedding reads as a place"):
        there(T([4]).to(DEVICE))
