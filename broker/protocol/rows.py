"""The rows of a cut's values: one sample's part of each tensor, and the name that tells it from all others.

A device whose head is frozen sends the same rows in every epoch, in batches of another order. It names rows
that the worker keeps (RECALL), and the worker puts the FORWARD together from them. A row is cut out of the
values as they travel, packed, so that the FORWARD is the same to the bit. A name is a cryptographic hash of
the row's bytes and form, so that one can't stand for another.

Values have rows where every tensor has the batch outermost in memory, as many elements of its first
dimension for each sample, and lies dense.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from broker.protocol import messages as m
from broker.protocol.messages import Value
from broker.protocol.ranges import ByteRanges
from spliteasy.codecs.layout import dense, is_dense

NAME_BYTES = 16
RowName = bytes
Chunk = bytes | memoryview
"""The bytes of a row in one of the values."""

_SHARED = (
    "session",
    "attempt",
    "step",
    "traceparent",
    "micro",
    "oldest_checkpoint",
    "samples",
    "batch",
    "targets",
    "counted",
    "best",
    "codec",
    "packing",
    "reply_codec",
)
"""The fields that a RECALL has of its FORWARD."""


@dataclass(frozen=True, slots=True)
class TensorForm:
    """The form of a row in one tensor: `lead` elements of the first dimension, each of `shape`."""

    dtype: torch.dtype
    lead: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """The strides of the dimensions after the first, in elements."""

    @property
    def nbytes(self) -> int:
        """The size in bytes of a row."""
        return self.lead * math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: Tensor, samples: int) -> TensorForm | None:
        """The form of the rows of a dense tensor; None where it has no rows."""
        shape, strides = tuple(tensor.shape), tensor.stride()
        if not shape or not shape[0] or shape[0] % samples or not is_dense(shape, strides):
            return None
        if shape[0] > 1 and strides[0] != math.prod(shape[1:]):
            return None
        return cls(tensor.dtype, shape[0] // samples, shape[1:], strides[1:])


RowForm = tuple[TensorForm | None, ...]
"""The form of a row in each value; None for an integer, of which rows have nothing."""


def form_of(values: Sequence[Value], samples: int) -> RowForm | None:
    """The form of the values' rows; None where they have none."""
    forms: list[TensorForm | None] = []
    for value in values:
        form = TensorForm.of(dense(value), samples) if isinstance(value, Tensor) else None
        if form is None and not isinstance(value, int):
            return None
        forms.append(form)
    return tuple(forms) if any(forms) else None


def bytes_of_row(form: RowForm) -> int:
    """The size in bytes of a row of that form."""
    return sum(each.nbytes for each in form if each is not None)


def chunks_of(values: Sequence[Value], form: RowForm, samples: int) -> Iterator[tuple[Chunk, ...]]:
    """Return each row of the values, as its bytes in each tensor. They are views of the tensors' memory."""
    sized = [
        (_memory(value), each.nbytes)
        for value, each in zip(values, form, strict=True)
        if isinstance(value, Tensor) and each is not None
    ]
    for row in range(samples):
        yield tuple(memory[row * nbytes : (row + 1) * nbytes] for memory, nbytes in sized)


def row_names(values: Sequence[Value], samples: int) -> tuple[RowName, ...] | None:
    """The names of the values' rows, in order; None where they have none."""
    form = form_of(values, samples)
    if form is None:
        return None
    return tuple(name_of(row, form) for row in chunks_of(values, form, samples))


def name_of(row: Sequence[Chunk], form: RowForm) -> RowName:
    """The name of one row."""
    hasher = hashlib.blake2b(_told(form), digest_size=NAME_BYTES, person=b"spliteasy-row")
    for chunk in row:
        hasher.update(chunk)
    return hasher.digest()


def joined(rows: Sequence[Sequence[Chunk]], form: RowForm) -> list[Tensor]:
    """The tensors that consist of these rows, one for each that the form has."""
    return [
        _joined([row[index] for row in rows], each)
        for index, each in enumerate(each for each in form if each is not None)
    ]


def recall_of(
    forward: m.Forward, names: Sequence[RowName], known: Callable[[RowName], bool]
) -> m.Recall | None:
    """The RECALL that stands for a FORWARD whose rows have these names, of which the worker keeps the known.

    None where most of them would have to travel.
    """
    count = forward.samples
    values = forward.values[: len(forward.values) - forward.targets]
    form = form_of(values, count)
    absent = [row for row, name in enumerate(names) if not known(name)]
    ranges = ByteRanges((row, row + 1) for row in absent)
    if form is None or len(names) != count or 2 * len(absent) > count or len(ranges) > m.MAX_RANGES:
        return None
    sent: Iterator[Tensor] = iter(())
    if absent:
        rows = list(chunks_of(values, form, count))
        sent = iter(joined([rows[row] for row in absent], form))
    carried = (next(sent, None) if isinstance(value, Tensor) else value for value in values)
    told = torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8).reshape(count, NAME_BYTES)
    return m.Recall(
        forward=forward.request,
        sent=tuple(ranges),
        values=(told, *carried, *forward.values[len(values) :]),
        **{name: getattr(forward, name) for name in _SHARED},
    )


def forward_of(recall: m.Recall, values: Sequence[Value | None]) -> m.Forward:
    """The FORWARD that a RECALL stands for, with these values before its targets."""
    targets = recall.values[len(recall.values) - recall.targets :]
    return m.Forward(
        request=recall.forward,
        keep=True,
        values=(*values, *targets),
        **{name: getattr(recall, name) for name in _SHARED},
    )


def _told(form: RowForm) -> bytes:
    return repr([each and (str(each.dtype), each.lead, each.shape, each.strides) for each in form]).encode()


def _memory(tensor: Tensor) -> memoryview:
    flat = dense(tensor).as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


def _joined(chunks: Sequence[Chunk], form: TensorForm) -> Tensor:
    shape = (len(chunks) * form.lead, *form.shape)
    strides = (math.prod(form.shape), *form.strides)
    memory = bytearray().join(chunks)
    if not memory:
        return torch.empty_strided(shape, strides, dtype=form.dtype)
    return torch.frombuffer(memory, dtype=form.dtype).as_strided(shape, strides)
