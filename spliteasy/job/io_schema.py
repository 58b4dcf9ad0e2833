"""The schema of a job's inputs and outputs: names, shapes and dtypes, to check data before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

import orjson
import torch
from pydantic import Field, model_validator
from torch import Tensor

from spliteasy.graph.document import DtypeName
from spliteasy.job.spec import MAX_COUNT, Name, Section


class SampleSpec(Section):
    """One tensor of a sample."""

    name: Name
    dtype: DtypeName
    """The dtype as torch names it: `float32`, `int64`."""
    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_COUNT)], ...], Field(max_length=32)]
    """The shape without the batch dimension; of the longest sample, where their length is free."""
    length_dims: Annotated[tuple[Annotated[int, Field(ge=0, le=31)], ...], Field(max_length=32)] = ()
    """The dimensions in `shape` whose size is the sample's length."""

    @classmethod
    def of(cls, name: str, batch: Tensor, length_dims: Sequence[int] = ()) -> Self:
        """The spec of one sample of `batch`, whose first dimension counts samples."""
        return cls.model_validate(
            {
                "name": name,
                "dtype": dtype_name(batch.dtype),
                "shape": tuple(batch.shape[1:]),
                "length_dims": tuple(length_dims),
            }
        )

    @model_validator(mode="after")
    def _dims_exist(self) -> Self:
        if any(dim >= len(self.shape) for dim in self.length_dims):
            raise ValueError("a length in a dimension that the shape does not have")
        return self

    def shape_at(self, length: int) -> tuple[int, ...]:
        """The shape of a sample that is padded to `length`; the same for all where it has no length."""
        return tuple(length if dim in self.length_dims else size for dim, size in enumerate(self.shape))

    def __str__(self) -> str:
        return told(self.dtype, self.shape)


class Signature(Section):
    """The model's inputs, targets and outputs, in order."""

    inputs: Annotated[tuple[SampleSpec, ...], Field(min_length=1, max_length=16)]
    targets: Annotated[tuple[SampleSpec, ...], Field(min_length=1, max_length=16)]
    outputs: Annotated[tuple[SampleSpec, ...], Field(min_length=1, max_length=64)]
    least_samples: Annotated[int, Field(ge=1, le=2)] = 1
    """The fewest samples that a training batch, or a part of it, may have: 2 where the model normalises by
    statistics over the batch, which one sample does not have."""

    def length_of(self, inputs: Sequence[Tensor]) -> int | None:
        """Return the length to which the samples of a batch are padded; None where they have none."""
        specs = zip(inputs, self.inputs, strict=True)
        return next((batch.shape[1 + dim] for batch, spec in specs for dim in spec.length_dims), None)

    def to_json(self) -> bytes:
        """Return canonical JSON. What older versions do not know is left out where it is not used."""
        document = self.model_dump(mode="json")
        if self.least_samples == 1:
            del document["least_samples"]
        for spec in (*document["inputs"], *document["targets"], *document["outputs"]):
            if not spec["length_dims"]:
                del spec["length_dims"]
        return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def told(dtype: str, shape: Sequence[int]) -> str:
    """`float32[1, 8, 8]`, as errors name a tensor."""
    return f"{dtype}[{', '.join(map(str, shape))}]"
