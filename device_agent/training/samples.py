"""Items of a data set as the job's tensors: made under seeds of their own, checked, stacked into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spliteasy.errors import DataError, UserError
from spliteasy.graph.checker import SHORTEST
from spliteasy.graph.document import DTYPES
from spliteasy.job import JobSpec
from spliteasy.job.io_schema import SampleSpec, Signature, dtype_name, told
from spliteasy.runtime import user_code
from spliteasy.runtime.generators import seed_all, states_kept
from spliteasy.runtime.randomness import Key
from spliteasy.training.losses import CLASS_LOSSES, IGNORED_CLASS

Tensors = tuple[Tensor, ...]

_DTYPE_HINTS = {
    ("float64", "float32"): "convert it with .float() where the data set makes it",
    ("uint8", "float32"): "scale it where the data set makes it, as in x.float() / 255",
    ("int32", "int64"): "convert it with .long() where the data set makes it",
}


class Samples:
    """A data set whose items are checked against the job, and made under seeds of their own."""

    def __init__(
        self, dataset: Dataset[Any], spec: JobSpec, signature: Signature, *, device: str, key: Key, name: str
    ) -> None:
        """`name` says which data it is, such as "training", for errors."""
        self._dataset = dataset
        self._whose = f"the {name} data of {device}"
        self._signature = signature
        self._key = key.at("item")
        self._longest, self._pad = spec.model.max_length, spec.model.pad
        self._classes: int | None = None
        if spec.loss.name in CLASS_LOSSES and signature.targets[0].dtype == "int64":
            self._classes = signature.outputs[0].shape[0]
        self._length = len(dataset)  # type: ignore[arg-type]
        if self._length == 0:
            raise DataError(f"{self._whose} has no samples: the data set is empty")
        self.gather([0], "check")

    def __len__(self) -> int:
        return self._length

    def gather(self, indices: Sequence[int], *place: str | int) -> tuple[Tensors, Tensors]:
        """Stack the items at `indices` into (inputs, targets), batch first; those with a length are padded to
        the longest of them.

        Before each item torch, numpy and random begin where (key, `place`, index) says; their states are
        put back afterwards. Raises DataError, naming the sample.
        """
        rows = self.rows(indices, *place)
        specs, count = (*self._signature.inputs, *self._signature.targets), len(self._signature.inputs)
        length = padded_length(specs, rows)
        columns = tuple(
            stacked(column, spec, length, self._pad.get(spec.name))
            for column, spec in zip(zip(*rows, strict=True), specs, strict=True)
        )
        if self._classes is not None:
            _check_labels(columns[count], self._classes, indices)
        return columns[:count], columns[count:]

    def rows(self, indices: Sequence[int], *place: str | int) -> list[list[Tensor]]:
        """The items at `indices` as they are: the inputs of each, then its targets. Raises DataError."""
        rows = []
        with states_kept():
            for index in indices:
                seed_all(self._key.at(*place, index))
                rows.append(self._item(index))
        return rows

    def problem(self, inputs: Tensors, targets: Tensors, indices: Sequence[int]) -> DataError | None:
        """The first value that is NaN or infinite in a batch that `gather` gave for `indices`."""
        columns = zip(
            (*inputs, *targets),
            [
                *(("input", spec.name) for spec in self._signature.inputs),
                *(("target", spec.name) for spec in self._signature.targets),
            ],
            strict=True,
        )
        found = []
        for values, (kind, name) in columns:
            if values.is_floating_point() and not bool(values.isfinite().all()):
                place = (~values.isfinite()).nonzero()[0].tolist()
                number = "NaN" if bool(values[tuple(place)].isnan()) else "infinite"
                where = f" at {place[1:]}" if len(place) > 1 else ""
                found.append((place[0], f"{kind} {name!r} is {number}{where}"))
        if not found:
            return None
        row, what = min(found, key=lambda each: each[0])
        return DataError(
            f"{self._whose}, sample {indices[row]}: {what}",
            hint="mend the sample, or leave it out, where the data set makes it",
        )

    def _by_name(self, item: Any, index: int) -> Any:
        """(inputs, targets) of an item that is a dictionary by the job's names; others as they are."""
        if not isinstance(item, Mapping):
            return item
        groups = (self._signature.inputs, self._signature.targets)
        missing = [spec.name for group in groups for spec in group if spec.name not in item]
        if missing:
            raise DataError(
                f"sample {index} is a dictionary with {', '.join(map(repr, item))}, and lacks "
                f"{', '.join(map(repr, missing))}",
                hint="return (inputs, targets), or name the keys in the job's model.inputs and model.targets",
            )
        return tuple(tuple(item[spec.name] for spec in group) for group in groups)

    @staticmethod
    def _named(values: Mapping[str, Any], specs: Sequence[SampleSpec], kind: str, index: int) -> list[Any]:
        missing = [spec.name for spec in specs if spec.name not in values]
        if missing:
            raise DataError(f"sample {index} lacks the {kind}s {', '.join(map(repr, missing))}")
        return [values[spec.name] for spec in specs]

    def _item(self, index: int) -> list[Tensor]:
        try:
            item = self._dataset[index]
        except UserError:
            raise
        except Exception as raised:
            raise DataError(f"sample {index}: the data set raised {user_code.told(raised)}") from raised
        item = self._by_name(item, index)
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(
                f"sample {index} is a {type(item).__name__}, not (inputs, targets)",
                hint="each item of the data set is a pair; several inputs or targets are tuples in it",
            )
        tensors = []
        for values, specs, kind in zip(
            item, (self._signature.inputs, self._signature.targets), ("input", "target"), strict=True
        ):
            if isinstance(values, Mapping):
                values = self._named(values, specs, kind, index)
            parts = values if isinstance(values, (tuple, list)) else (values,)
            if len(parts) != len(specs):
                raise DataError(f"sample {index} has {len(parts)} {kind}s, the job has {len(specs)}")
            for part, spec in zip(parts, specs, strict=True):
                tensors.append(_checked(part, spec, f"sample {index}: {kind} {spec.name!r}"))
        self._check_length(tensors, index)
        return tensors

    def _check_length(self, tensors: Sequence[Tensor], index: int) -> None:
        """Refuse a sample that is too long, or of which some inputs and targets are longer than others."""
        if self._longest is None:
            return
        specs = (*self._signature.inputs, *self._signature.targets)
        lengths = {
            spec.name: tensor.shape[dim]
            for spec, tensor in zip(specs, tensors, strict=True)
            for dim in spec.length_dims
        }
        if len(set(lengths.values())) > 1:
            told_of = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise DataError(
                f"{self._whose}, sample {index}: its inputs and targets differ in length: {told_of}",
                hint="let the data set make them of one length: the job pads them",
            )
        length = next(iter(lengths.values()))
        if not 1 <= length <= self._longest:
            raise DataError(
                f"{self._whose}, sample {index} has a length of {length}; the job takes 1 to {self._longest}",
                hint="cut longer samples where the data set makes them, or raise model.max_length",
            )


def _check_labels(labels: Tensor, classes: int, indices: Sequence[int]) -> None:
    """Check the labels of a whole batch at once: one by one they took a fifth of the time of loading the
    batch."""
    wrong = ((labels < 0) | (labels >= classes)) & (labels != IGNORED_CLASS)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0, 0])
        raise DataError(
            f"sample {indices[first]}: label {int(labels[wrong][0])} is out of range",
            hint=f"the model has {classes} classes: labels are 0 to {classes - 1}",
        )


def _checked(value: Any, spec: SampleSpec, what: str) -> Tensor:
    """`value` as a tensor of the spec's dtype and shape; Python numbers take the dtype of their kind,
    and whole ones that of floats too.
    """
    dtype = DTYPES[spec.dtype]
    tensor: Tensor | None = None
    try:
        if isinstance(value, Tensor):
            tensor = value.detach()
        elif isinstance(value, (np.ndarray, np.generic)):
            tensor = torch.tensor(np.ascontiguousarray(value)).reshape(np.shape(value))
        elif type(value) is _number_kind(dtype) or (type(value) is int and dtype.is_floating_point):
            tensor = torch.tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} can't be a tensor: {error}") from error
    if tensor is None:
        raise DataError(f"{what} is a {type(value).__name__}, expected {spec}")
    if tensor.device.type != "cpu":
        raise DataError(f"{what} is on {tensor.device}, expected it on the CPU", hint="move it with .cpu()")
    if tensor.dtype != dtype or not _has_shape(tensor, spec):
        name = dtype_name(tensor.dtype)
        raise DataError(
            f"{what} is {told(name, tensor.shape)}, expected {spec}",
            hint=_DTYPE_HINTS.get((name, spec.dtype)),
        )
    return tensor


def _has_shape(tensor: Tensor, spec: SampleSpec) -> bool:
    """Return whether the tensor has the spec's shape, but for its length."""
    if tensor.dim() != len(spec.shape):
        return False
    return all(
        dim in spec.length_dims or size == wanted
        for dim, (size, wanted) in enumerate(zip(tensor.shape, spec.shape, strict=True))
    )


def padded_length(specs: Sequence[SampleSpec], rows: Sequence[Sequence[Tensor]]) -> int:
    """The length to which samples with one are padded: that of the longest, and no less than the shortest
    that a model is traced for. 0 where samples have none."""
    lengths = [
        tensor.shape[dim]
        for row in rows
        for spec, tensor in zip(specs, row, strict=True)
        for dim in spec.length_dims
    ]
    return max(SHORTEST, *lengths) if lengths else 0


def stacked(
    column: Sequence[Tensor], spec: SampleSpec, length: int, value: bool | int | float | None
) -> Tensor:
    """The tensors of several samples as one, batch first; those with a length are padded to `length`."""
    if not spec.length_dims:
        return torch.stack(tuple(column))
    assert value is not None, "a job says what samples with a length are padded with"
    whole = torch.full((len(column), *spec.shape_at(length)), value, dtype=DTYPES[spec.dtype])
    for row, tensor in zip(whole, column, strict=True):
        row[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


def _number_kind(dtype: torch.dtype) -> type:
    if dtype == torch.bool:
        return bool
    return float if dtype.is_floating_point else int
