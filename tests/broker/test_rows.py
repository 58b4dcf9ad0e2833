"""Rows of a cut's values: cut out, named, put together again to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from broker import encode
from broker.protocol import messages as m
from broker.protocol import rows
from broker.protocol.rows import (
    Chunk,
    RowName,
    bytes_of_row,
    chunks_of,
    form_of,
    forward_of,
    joined,
    recall_of,
    row_names,
)
from spliteasy.codecs.packer import Packer

FIELDS: dict[str, Any] = {
    "session": "digits.phone-1",
    "attempt": m.AttemptRef(number=1, nonce="0" * 16),
    "step": 3,
    "oldest_checkpoint": 0,
}
CASES: dict[str, tuple[m.Value, ...]] = {
    "a matrix": (torch.randn(6, 5),),
    "channels last": (torch.randn(6, 3, 4, 4).contiguous(memory_format=torch.channels_last),),
    "two tensors and an integer": (torch.randn(6, 2), 6, torch.arange(6)),
    "several of the first dimension for a sample": (torch.randn(24, 3),),
    "numbers": (torch.randn(6),),
    "booleans": (torch.rand(6, 9) > 0.5,),
    "halves": (torch.randn(6, 7).half(), torch.randn(6, 7).bfloat16()),
}


def in_order(values: tuple[m.Value, ...], order: list[int]) -> tuple[m.Value, ...]:
    """The same samples in another order, as a head would give them."""

    def one(value: m.Value) -> m.Value:
        if not isinstance(value, Tensor):
            return value
        by_sample = value.reshape(6, -1, *value.shape[1:])[order].reshape(value.shape)
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(by_sample)

    return tuple(map(one, values))


def forward(values: tuple[m.Value, ...], samples: int = 6, **changes: Any) -> m.Forward:
    return m.Forward(**FIELDS, samples=samples, values=values, keep=True, **changes)


def put_together(recall: m.Recall, kept: dict[RowName, tuple[Chunk, ...]], form: Any) -> m.Forward:
    assert isinstance(recall.values[0], Tensor)
    names = [row.numpy().tobytes() for row in recall.values[0]]
    tensors = iter(joined([kept[name] for name in names], form))
    carried = recall.values[1 : len(recall.values) - recall.targets]
    return forward_of(recall, [value if isinstance(value, int) else next(tensors) for value in carried])


@pytest.mark.parametrize("case", CASES)
def test_a_forward_is_put_together_from_its_rows_to_the_bit(case: str) -> None:
    values, order = CASES[case], [3, 0, 5, 1, 4, 2]
    form, names = form_of(values, 6), row_names(values, 6)
    assert form is not None
    assert names is not None
    kept = {name: tuple(map(bytes, row)) for name, row in zip(names, chunks_of(values, form, 6), strict=True)}
    again = forward(in_order(values, order))
    found = row_names(again.values, 6)
    assert found == tuple(names[row] for row in order)
    recall = recall_of(again, found, kept.__contains__)
    assert recall is not None
    assert recall.sent == ()
    assert encode(put_together(recall, kept, form)) == encode(again)


@pytest.mark.parametrize("codec", ["fp16", "bf16"])
def test_packed_values_have_rows_too(codec: str) -> None:
    packer = Packer({"activations": (codec,)})
    values = torch.randn(6, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    first = m.Forward(
        **FIELDS, samples=6, keep=True, **m.carried(packer.pack("activations", (values,), step=1))
    )
    flipped = values.flip(0).contiguous(memory_format=torch.channels_last)
    second = m.Forward(
        **FIELDS, samples=6, keep=True, **m.carried(packer.pack("activations", (flipped,), step=2))
    )
    names, form = row_names(first.values, 6), form_of(first.values, 6)
    assert names is not None
    assert form is not None
    kept = dict(zip(names, chunks_of(first.values, form, 6), strict=True))
    recall = recall_of(second, names[::-1], kept.__contains__)
    assert recall is not None
    assert encode(put_together(recall, kept, form)) == encode(second)


def test_rows_that_the_worker_lacks_travel_and_no_others() -> None:
    values = (torch.randn(6, 5), 6)
    targets = torch.arange(6)
    request = forward((*values, targets), targets=1, counted=4.0)
    names = row_names(values, 6)
    assert names is not None
    recall = recall_of(request, names, lambda name: name not in (names[1], names[4]))
    assert recall is not None
    assert recall.sent == ((1, 2), (4, 5))
    told, sent, whole, labels = recall.values
    assert isinstance(told, Tensor)
    assert isinstance(sent, Tensor)
    assert torch.equal(sent, values[0][[1, 4]])
    assert (whole, labels) == (6, targets)
    assert recall.counted == request.counted
    assert recall_of(request, names, lambda name: name in names[:2]) is None  # most of it would travel


def test_values_without_rows_have_no_names() -> None:
    for values in (
        (torch.randn(5, 6),),  # 5 are not so many for each of 6 samples
        (torch.tensor(1.0),),
        (torch.randn(6, 4).t().contiguous().t(),),  # the batch lies innermost
        (torch.randn(6, 2), None),
        (torch.empty(6, 0),),
        (6,),
        (),
    ):
        assert row_names(values, 6) is None


def test_a_name_is_of_bytes_and_form() -> None:
    """Rows of equal bytes in another form are other rows; a changed bit is another row."""
    rows = torch.arange(24, dtype=torch.float32).reshape(6, 2, 2)
    forms = (rows, rows.reshape(6, 4), rows.view(torch.int32), rows.reshape(24))
    seen = {names[0] for each in forms if (names := row_names((each,), 6)) is not None}
    assert len(seen) == len(forms)
    changed = rows.clone()
    changed.view(torch.int32)[2, 1, 1] ^= 1
    before, after = row_names((rows,), 6), row_names((changed,), 6)
    assert before is not None
    assert after is not None
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, True, True, True]


def test_the_bytes_of_a_row() -> None:
    form = form_of((torch.randn(24, 3), torch.arange(6), 6), 6)
    assert form is not None
    assert bytes_of_row(form) == 4 * 3 * 4 + 8


def test_a_recall_has_every_field_of_its_forward() -> None:
    """A field that is added to FORWARD later must not get lost where it is put together.

    Samples with lengths of their own have no rows that come again, so that a RECALL has no `length`.
    """
    of_a_forward = set(m.Forward.model_fields) - {"kind", "request", "values", "keep", "length"}
    assert of_a_forward == set(rows._SHARED)
    assert of_a_forward <= set(m.Recall.model_fields)
