"""A law says how a model's initial tensors were drawn, as a small program that another machine can run.

A law is a straight line of steps on plain memory: a step draws numbers (`SOURCES`) or calls one of
the allow-listed operators, and writes into views of memory that begins as zeros. It comes from the model's
factory (`spliteasy.privacy.recording`) and reaches devices in a job package, so that everything in it is
bounded and checked before it runs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from spliteasy.errors import PortableError
from spliteasy.graph import limits, operators
from spliteasy.graph.document import DTYPES, DtypeName, Name, Ref, Size
from spliteasy.graph.encoding import decode_argument

MAX_STEPS = 20_000
MAX_VIEWS = 60_000
ROOM = 8
"""Elements that a law's memory may have, for each element of the tensors that it gives."""

SPARE = 1 << 20
"""Elements of memory that any law may have."""

SOURCES: Mapping[str, int] = {
    "uniform": 2,
    "normal": 2,
    "trunc_normal": 4,
    "bernoulli": 1,
    "exponential": 1,
    "integers": 2,
    "permutation": 0,
}
"""The sources of random numbers with their arguments: (low, high); (mean, std); (mean, std, low, high);
(probability); (rate); (low, high); ()."""

OPERATORS = frozenset().union(
    operators.ARITHMETIC, operators.LOGIC, operators.REDUCTIONS, operators.LINEAR_ALGEBRA,
    operators.COPIES, operators.FACTORIES, operators.IN_PLACE,
    {
        "aten.erfinv.default", "aten.erfinv_.default", "aten.clamp_.Tensor", "aten.linalg_qr.default",
        "aten.diagonal_copy.default", "aten.vdot.default", "aten.sign_.default", "aten.tril_.default",
        "aten.triu_.default", "aten.sub_.Tensor", "aten.div_.Tensor_mode", "aten.log1p_.default",
        "aten.lt_.Scalar", "aten.gt_.Scalar", "aten.cumsum_.default", "aten.pow_.Tensor",
    },
) - operators.UNINITIALISED - {"aten.einsum.default"}  # fmt: skip
"""The operators that a law may apply to what it drew: the arithmetic of portable graphs, and what
initializers add."""

Draw = Callable[[int, "Step", Tensor], None]
"""A function that is called with a source's place among the law's steps, the step, and the view that takes
its numbers."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Memory(_Record):
    """A block of `size` elements, zeros at first."""

    dtype: DtypeName
    size: Size


class View(_Record):
    """Elements of a block: `offset + Σ index · stride`."""

    memory: Annotated[int, Field(ge=0)]
    shape: Annotated[tuple[Size, ...], Field(max_length=limits.DIMENSIONS)]
    strides: Annotated[tuple[Size, ...], Field(max_length=limits.DIMENSIONS)]
    offset: Size = 0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The element after the last one that it shows."""
        if not self.numel:
            return self.offset
        return self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


class Step(_Record):
    """A source or an operator. `{"ref": 7}` in its arguments is view 7.

    `out` names the views that take its results; an operator without any writes into its first argument.
    """

    op: Name
    args: Annotated[tuple[Any, ...], Field(max_length=16)] = ()
    kwargs: Annotated[dict[Name, Any], Field(max_length=16)] = {}
    out: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=16)] = ()


class Law(_Record):
    """Memory, views of it, and the steps in order. `spliteasy.privacy.ends` says which views are tensors."""

    version: Literal[1] = 1
    memory: Annotated[tuple[Memory, ...], Field(max_length=limits.TENSORS)] = ()
    views: Annotated[tuple[View, ...], Field(max_length=MAX_VIEWS)] = ()
    steps: Annotated[tuple[Step, ...], Field(max_length=MAX_STEPS)] = ()


def check_law(law: Law, results: Sequence[int]) -> None:
    """Refuse a law that reaches outside its memory, or needs far more of it than the `results` have.

    Raises PortableError.
    """
    for view in law.views:
        if view.memory >= len(law.memory) or len(view.shape) != len(view.strides):
            raise PortableError("a law's view has no memory, or other strides than dimensions")
        if view.numel > limits.ELEMENTS or view.end > law.memory[view.memory].size:
            raise PortableError("a law's view reaches outside its memory")
    if any(place >= len(law.views) for place in results):
        raise PortableError("a law's tensor is no view of its memory")
    given = sum(law.views[place].numel for place in results)
    if sum(block.size for block in law.memory) > ROOM * given + SPARE:
        raise PortableError("a law needs far more memory than its tensors have")
    for step in law.steps:
        check_step(step)
        if any(place >= len(law.views) for place in step.out):
            raise PortableError(f"step {step.op} of a law writes outside its views")


def check_step(step: Step) -> None:
    """Raises PortableError where the step is not one that a law may have."""
    if step.op in SOURCES:
        numbers = all(type(x) in (int, float) and math.isfinite(x) for x in step.args)
        if len(step.out) != 1 or step.kwargs or len(step.args) != SOURCES[step.op] or not numbers:
            raise PortableError(f"source {step.op} of a law has wrong arguments")
    elif step.op not in OPERATORS:
        raise PortableError(f"{step.op[:80]!r} is no operator of a law")


@cache
def operator_of(name: str) -> Any:
    """Return ATen's operator of that name, which is in `OPERATORS`."""
    _, base, overload = name.split(".")
    try:
        return getattr(getattr(torch.ops.aten, base), overload)
    except AttributeError:
        raise PortableError(f"operator {name} does not exist in torch {torch.__version__}") from None


def run_law(law: Law, draw: Draw) -> list[Tensor]:
    """Every view of the law's memory after its last step; the law has been checked.

    `draw` fills the sources' views. Raises PortableError where an operator refuses its arguments.
    """
    blocks = [torch.zeros(block.size, dtype=DTYPES[block.dtype]) for block in law.memory]
    views = [blocks[v.memory].as_strided(v.shape, v.strides, v.offset) for v in law.views]
    with torch.no_grad():
        for place, step in enumerate(law.steps):
            try:
                if step.op in SOURCES:
                    draw(place, step, views[step.out[0]])
                else:
                    _call(step, views)
            except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
                raise PortableError(f"step {place} of a law, {step.op}: {error!s:.200}") from None
    return views


def _call(step: Step, views: list[Tensor]) -> None:
    function = operator_of(step.op)
    args = [_resolved(decode_argument(arg), views) for arg in step.args]
    kwargs = {name: _resolved(decode_argument(arg), views) for name, arg in step.kwargs.items()}
    if function._schema.is_mutable:
        function(*args, **kwargs)
        return
    _check_results(step, function, args, kwargs, views)
    results = _listed(function(*args, **kwargs))
    for place, value in zip(step.out, results, strict=True):
        views[place].copy_(value)


def _check_results(
    step: Step, function: Any, args: list[Any], kwargs: dict[str, Any], views: list[Tensor]
) -> None:
    """Compute the shapes of the results first: they have to be as said, so that nothing large is made."""
    device = {"device": "meta"} if step.op in operators.FACTORIES else {}
    meta = _listed(function(*_on_meta(args), **_on_meta(kwargs), **device))
    expected = [(views[place].shape, views[place].dtype) for place in step.out]
    if [(value.shape, value.dtype) for value in meta] != expected:
        raise PortableError(f"{step.op} of a law gives other tensors than it says")


def _resolved(value: Any, views: list[Tensor]) -> Any:
    if isinstance(value, Ref):
        return views[value.slot]
    if isinstance(value, list):
        return [_resolved(item, views) for item in value]
    return value


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, list):
        return [_on_meta(item) for item in value]
    if isinstance(value, dict):
        return {name: _on_meta(item) for name, item in value.items()}
    return value


def _listed(result: Any) -> list[Tensor]:
    values = list(result) if isinstance(result, tuple | list) else [result]
    if not all(isinstance(value, Tensor) for value in values):
        raise PortableError("an operator of a law gives what is no tensor")
    return values


def draw_by_torch(step: Step, out: Tensor) -> None:
    """Draw what the source drew in the model's factory, from torch's default generator as it is now."""
    match step.op:
        case "uniform":
            out.uniform_(*step.args)
        case "normal":
            out.normal_(*step.args)
        case "trunc_normal":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of far bounds, of which the factory was warned
                nn.init.trunc_normal_(out, *step.args)
        case "bernoulli":
            out.bernoulli_(*step.args)
        case "exponential":
            out.exponential_(*step.args)
        case "integers":
            out.random_(*step.args)
        case "permutation":
            out.copy_(torch.randperm(out.numel(), dtype=out.dtype).view_as(out))
        case _:
            raise AssertionError(f"{step.op} is no source")
