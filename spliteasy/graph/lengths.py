"""The length of samples as a second free dimension: which dimensions of a model's inputs have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.export import Dim

from spliteasy.errors import JobError
from spliteasy.graph.checker import SHORTEST


@dataclass(frozen=True, slots=True)
class FreeLength:
    """The dimensions of inputs, by input, whose size is the length of the samples; the example has `longest`.

    Each dimension counts with the batch as dimension 0, and is another one.
    """

    dims: tuple[tuple[int, ...], ...]
    longest: int

    def check(self, inputs: Sequence[Tensor], kind: str = "input") -> None:
        """Raises `JobError` where the example's inputs have another length than the longest."""
        for number, (value, dims) in enumerate(zip(inputs, self.dims, strict=True)):
            for dim in dims:
                size = value.shape[dim] if dim < value.dim() else 0
                if size != self.longest:
                    raise JobError(
                        f"{kind} {number} of the example has size {size} in dimension {dim}, where its "
                        f"samples have their length of {self.longest}",
                        hint="let the example's samples be as long as model.max_length",
                    )

    def dynamic(self, number: int) -> dict[int, Dim]:
        """The free dimensions of an input beside its batch, as torch.export takes them."""
        length = Dim("length", min=SHORTEST, max=self.longest)
        return dict.fromkeys(self.dims[number], length)

    def cut(self, inputs: Sequence[Tensor], length: int) -> tuple[Tensor, ...]:
        """The inputs, of whose samples only the beginning is left."""
        made = []
        for value, dims in zip(inputs, self.dims, strict=True):
            for dim in dims:
                value = value.narrow(dim, 0, length)
            made.append(value.clone())
        return tuple(made)

    @property
    def tried(self) -> tuple[int, ...]:
        """Lengths at which a trace is proved beside the longest."""
        return tuple(sorted({SHORTEST, (SHORTEST + self.longest) // 2}))
