"""Everyday expressions travel: outputs and gradients are the eager ones, bit for bit, at any batch size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness.operators import all_operators, table
from spliteasy.errors import JobError, PortableError
from spliteasy.graph.operators import _DROPOUT_FLAG, ATEN, operator_of
from spliteasy.graph.operators import RANDOM as RANDOM_OPERATORS
from spliteasy.graph.refusals import reason_of
from spliteasy.graph.segment import Segment, load_segment
from spliteasy.splitting.boundaries import Partition
from spliteasy.splitting.export import trace_inputs
from spliteasy.splitting.split import assemble
from tests.portable.everyday import ALLOWED, RANDOM, REFUSED, expressions

pytestmark = [
    pytest.mark.filterwarnings("ignore:index_reduce.* is in beta"),
    pytest.mark.filterwarnings("ignore:reduction. .mean. divides the total loss"),
]

NAMES = ("x", "y", "p", "i", "j", "m", "c")


class Everyday(nn.Module):
    """Computes all expressions of a kind, each under a seed of its own place."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__()
        self.code: list[CodeType] = [compile(text, text, "eval") for text in texts]
        self.w = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        known: dict[str, Any] = {"torch": torch, "F": F, "w": self.w, **dict(zip(NAMES, given, strict=True))}
        made = [eval(code, known) for code in self.code]
        return tuple(out[0] if isinstance(out, tuple) else out for out in made)


def values(batch: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)

    def floats(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator).requires_grad_()

    def classes() -> Tensor:
        return torch.randint(8, (batch, 6), generator=generator)

    p = torch.rand(batch, 6, 8, generator=generator).mul(0.9).add(0.05).requires_grad_()
    return floats(6, 8), floats(6, 8), p, classes(), classes(), classes() > 3, floats(4, 8, 8)


def segment_of(model: nn.Module) -> Segment:
    trace = trace_inputs(model, values(4), "train")
    whole = Partition(trace, ()).parts[0]
    segment = assemble("everyday", whole, whole, list(trace.tensors.values()))
    return load_segment(segment.graph_json(), segment.tensors()).train()


def gradients(output: Tensor, given: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of one output, each element weighed differently."""
    leaves = [*(value for value in given if value.requires_grad), *weights]
    for leaf in leaves:
        leaf.grad = None
    if output.requires_grad:
        share = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
        output.backward(share, retain_graph=True)
    return [leaf.grad for leaf in leaves]


def same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return left.dtype == right.dtype and torch.equal(left.nan_to_num(7.0), right.nan_to_num(7.0))


def wrong(texts: Sequence[str]) -> list[str]:
    """The expressions whose value or gradient differs."""
    model = Everyday(texts).train()
    segment = segment_of(model)
    found: list[str] = []
    for batch in (4, 3):
        given, sent = values(batch), values(batch)
        torch.manual_seed(0)
        wanted = model(*given)
        torch.manual_seed(0)
        got = segment(*sent)
        weights = list(segment.parameters())
        for text, want, have in zip(texts, wanted, got, strict=True):
            assert isinstance(have, Tensor)
            plain = gradients(want, given, [model.w] if weights else [])
            if not same(want, have) or not all(map(same, plain, gradients(have, sent, weights))):
                found.append(text)
    return found


@pytest.mark.parametrize("kind", ALLOWED)
def test_allowed(kind: str) -> None:
    assert wrong(expressions(ALLOWED[kind])) == []


def test_random_numbers_follow_the_seed() -> None:
    assert wrong(expressions(RANDOM)) == []


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in REFUSED.items() for text in expressions(texts)]
)
def test_refused_with_the_reason(kind: str, text: str) -> None:
    with pytest.raises(JobError):
        segment_of(Everyday([text]))


def test_each_operator_of_torch_is_allowed_or_has_a_reason() -> None:
    unknown = [
        name for name, overload in all_operators() if name not in ATEN and not reason_of(name, overload)
    ]
    assert unknown == []


def test_what_torch_says_is_random_is_seeded() -> None:
    drawing = {
        name for name, overload in all_operators() if torch.Tag.nondeterministic_seeded in overload.tags
    }
    assert drawing & ATEN == RANDOM_OPERATORS | _DROPOUT_FLAG.keys() & drawing | {
        "aten.rrelu.default",
        "aten.scaled_dot_product_attention.default",
    }


def test_the_table_of_refusals_is_in_the_documents() -> None:
    assert table() in Path("docs/models.md").read_text(), "run python -m benchmarks.harness.operators"


def test_values_are_no_places_in_memory() -> None:
    picture, outside = torch.ones(1, 1, 4, 4), torch.full((1, 1, 2), 9.0)
    with pytest.raises(PortableError, match="outside 0 to 1"):
        operator_of("aten.fractional_max_pool2d.default")(picture, [2, 2], [2, 2], outside)
    with pytest.raises(RuntimeError, match="out of bounds"):
        operator_of("aten.as_strided.default")(torch.arange(9.0)[2:4], [4], [1])


@pytest.mark.parametrize(
    "text", ["torch.linalg.svdvals(w.repeat(1, 1000)).sum() * x", "torch.mvlgamma(p + 99, 100)"]
)
def test_work_without_end_is_refused(text: str) -> None:
    with pytest.raises(JobError, match=r"over the limit|takes 1 to"):
        segment_of(Everyday([text]))
