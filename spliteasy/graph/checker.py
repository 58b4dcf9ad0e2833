"""Refuse a program that can't be right, before any session depends on it.

The program is run in each mode on torch's meta device, which knows shapes and dtypes but holds no data: every
operator must accept its arguments, no value may be absurdly large, inputs must be left as they are, and the
outputs must be what the graph says. That is so at a batch of two samples, and at the sizes that the job will
run it at: then it is known, too, what memory and computing a run will take. Where the length of samples is
free, it is so for the shortest, for middling and for the longest.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from spliteasy.errors import PortableError
from spliteasy.graph import limits
from spliteasy.graph.document import INNER_DTYPES, Document, TensorSpec, Value, ValueSpec
from spliteasy.graph.flops import FlopCounter
from spliteasy.graph.operators import FACTORISATIONS, MULTIVARIATE
from spliteasy.graph.program import Batches, Code, Costs, Program, targets
from spliteasy.graph.recurrent import check_recurrent

_BATCH = 2
SHORTEST = 2
"""The least length to which samples are padded, where lengths are free: torch's traces say nothing of 1."""
_IN_PIECES = {
    "aten.unbind.int": 1,
    "aten.split.Tensor": 2,
    "aten.chunk.default": 2,
    "aten.unsafe_chunk.default": 2,
    "aten.unsafe_split.Tensor": 2,
    "aten.tensor_split.sections": 2,
    "aten.hsplit.int": 2,
    "aten.vsplit.int": 2,
    "aten.dsplit.int": 2,
}
"""Operators that give many pieces, and the place of their dimension."""


def check_program(program: Program, batches: Batches | None = None) -> Costs:
    """Return what a run takes at most at those batches, and note in `program.written` what it writes.

    Raises `PortableError` with the mode and the reason.
    """
    document = program.document
    _check_names(document)
    costs: dict[str, tuple[int, int]] = {}
    written: set[str] = set()
    batches = batches or Batches(train=(), eval=())
    for mode, sizes in (("train", batches.train), ("eval", batches.eval)):
        code, training = program.code(mode == "train"), mode == "train"
        try:
            found = [
                _check_code(document, code, batch, length, training, written)
                for batch, length in _extents(sizes, batches.length)
            ]
            costs[mode] = max(nbytes for nbytes, _ in found), max(flops for _, flops in found)
        except PortableError as error:
            raise PortableError(f"segment {document.name[:60]!r}, {mode} graph: {error.message}") from None
    program.written = frozenset(written)
    (train_bytes, train_flops), (eval_bytes, eval_flops) = costs["train"], costs["eval"]
    return Costs(
        train_bytes=train_bytes, eval_bytes=eval_bytes, train_flops=train_flops, eval_flops=eval_flops
    )


def _extents(sizes: tuple[int, ...], longest: int) -> Iterator[tuple[int, int]]:
    """The batch sizes and lengths that a program is tried at."""
    if longest > SHORTEST:
        yield from ((_BATCH, length) for length in sorted({SHORTEST, (SHORTEST + longest) // 2}))
    yield from ((batch, longest) for batch in sorted({_BATCH, *(size for size in sizes if size > _BATCH)}))


def _check_names(document: Document) -> None:
    seen: set[str] = set()
    for spec in document.tensors:
        if spec.requires_grad and (
            spec.kind != "parameter" or not INNER_DTYPES[spec.dtype].is_floating_point
        ):
            raise PortableError(f"tensor {spec.name!r} can't require a gradient")
        for name in spec.names:
            if name in seen or not all(part.isprintable() and part for part in name.split(".")):
                raise PortableError(f"tensor name {name[:60]!r} is used twice or malformed")
            seen.add(name)


def _check_code(
    document: Document, code: Code, batch: int, length: int, training: bool, written: set[str]
) -> tuple[int, int]:
    """Return the bytes that a run at that batch and length takes beside the segment's tensors, and its
    operations.

    The names of the tensors that it writes into are added to `written`.
    """
    graph = code.graph
    if len(graph.outputs) != len(graph.results) or graph.wire > len(graph.results):
        raise PortableError("the outputs' numbers and descriptions differ in count")
    tensors = [_meta_tensor(spec) for spec in document.tensors]
    inputs = [_meta_input(spec, batch, length) for spec in graph.inputs]
    memory = _Memory(keep=training)
    for value in inputs:
        memory.add(value)
    with torch.set_grad_enabled(training), FlopCounter() as counter:
        outputs, storages = _run(code, tensors, inputs, _elements(batch), memory)
    written.update(
        spec.name
        for spec, tensor in zip(document.tensors, tensors, strict=True)
        if tensor.untyped_storage()._cdata in storages
    )
    parameters = [t for t, spec in zip(tensors, document.tensors, strict=True) if spec.kind == "parameter"]
    for tensor in (*parameters, *inputs):
        if isinstance(tensor, Tensor) and tensor._version:
            raise PortableError("a node writes into a parameter or into an input")
    for spec, value in zip(graph.outputs, outputs, strict=True):
        problem = spec.problem_with(value, batch, length)
        if problem is not None:
            raise PortableError(f"output {problem}")
    return memory.peak_bytes, counter.flops


class _Memory:
    """Adds up the storages that a run makes: all, where a backward will need them, else those at a time."""

    def __init__(self, *, keep: bool) -> None:
        self.peak_bytes = 0
        self._keep = keep
        self._bytes = 0
        self._uses: dict[int, int] = {}
        self._storages: list[torch.UntypedStorage] = []

    def add(self, value: Any) -> None:
        """A value was made; views of one storage count once."""
        if isinstance(value, list | tuple):
            for item in value:
                self.add(item)
        elif isinstance(value, Tensor):
            storage = value.untyped_storage()
            key, nbytes = storage._cdata, storage.nbytes()
            self._uses[key] = self._uses.get(key, 0) + 1
            if self._uses[key] == 1:
                self._bytes += nbytes
                self.peak_bytes = max(self.peak_bytes, self._bytes)
            if self._keep:
                self._storages.append(storage)
            else:
                weakref.finalize(value, self._drop, key, nbytes)

    def _drop(self, key: int, nbytes: int) -> None:
        self._uses[key] -= 1
        if self._uses[key] == 0:
            del self._uses[key]
            self._bytes -= nbytes


def _elements(batch: int) -> int:
    return limits.ELEMENTS if batch == _BATCH else limits.BATCH_ELEMENTS


def _run(
    code: Code, tensors: list[Tensor], inputs: list[Value], elements: int, memory: _Memory
) -> tuple[tuple[Value, ...], set[int]]:
    """Do one dry run, and return its outputs and the storages that it writes into.

    Whatever an operator thinks of its arguments becomes a `PortableError`.
    """
    done = 0
    storages: set[int] = set()

    def invoke(call: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        nonlocal done
        _check_effort(code.graph.nodes[done].op, args, kwargs)
        written = targets(code.steps[done].writes, args, kwargs)
        storages.update(tensor.untyped_storage()._cdata for tensor in written)
        value = call(*args, **kwargs)
        _check_size(value, elements)
        memory.add(value)
        done += 1
        return value

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return code(tensors, inputs, "meta", invoke), storages
    except PortableError as error:
        raise PortableError(f"node {done}: {error.message}") from None
    except Exception as error:  # operators raise what they like: any of it means that the graph is wrong
        op = code.graph.nodes[done].op if done < len(code.graph.nodes) else "outputs"
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise PortableError(f"node {done} ({op}) can't run: {reason[0][:200]}") from None


def _check_effort(op: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Refuse the calls that would crash, or loop or make pieces without end, even on data-free tensors."""
    first = args[0] if args else None
    check_recurrent(op, args)
    _check_order(op, args)
    if op not in _IN_PIECES or not isinstance(first, Tensor):
        return
    place = _IN_PIECES[op]
    count = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if op in ("aten.unbind.int", "aten.split.Tensor", "aten.unsafe_split.Tensor"):
        dim = args[place] if len(args) > place else kwargs.get("dim", 0)
        count = first.shape[dim] // (max(1, count) if place == 2 else 1)
    if count > limits.PIECES:
        raise PortableError(f"{op} makes {count} pieces, over the limit of {limits.PIECES}")


def _check_order(op: str, args: list[Any]) -> None:
    """Refuse matrices whose factorisation would take hours, and sums over dimensions without end."""
    if op in FACTORISATIONS and args and isinstance(args[0], Tensor):
        whole = op.startswith("aten.linalg_tensor")  # these make one square matrix of all dimensions
        side = math.isqrt(args[0].numel()) if whole else max(args[0].shape[-2:], default=0)
        if side > limits.ORDER:
            raise PortableError(f"{op} of a matrix with {side} rows, over the limit of {limits.ORDER}")
    if op in MULTIVARIATE and (len(args) < 2 or not 0 < args[1] <= limits.DIMENSIONS):
        raise PortableError(f"{op} takes 1 to {limits.DIMENSIONS} dimensions")


def _check_size(value: Any, elements: int) -> None:
    if isinstance(value, Tensor):
        if value.numel() > elements or value.dim() > limits.DIMENSIONS:
            raise PortableError(f"makes a tensor of shape {tuple(value.shape)}, over the limits")
        if value.device.type != "meta":
            raise PortableError("makes a tensor outside the program's device")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_size(item, elements)
    elif isinstance(value, int | float):
        if abs(value) > limits.INTEGER:
            raise PortableError("makes a number beyond ±2^53")
    else:
        raise PortableError(f"makes a {type(value).__name__}")


def _meta_tensor(spec: TensorSpec) -> Tensor:
    made = torch.empty(spec.shape, dtype=INNER_DTYPES[spec.dtype], device="meta")
    return made.requires_grad_(spec.requires_grad)


def _meta_input(spec: ValueSpec, batch: int, length: int) -> Value:
    if spec.is_int:
        return spec.value_for(batch, length)
    shape = spec.shape_for(batch, length)
    size = 1
    for dim in shape:
        size *= dim
    if size < 0 or min(shape, default=0) < 0 or size > _elements(batch):
        raise PortableError(f"input {spec.name[:60]!r} has an impossible shape")
    if spec.needs_grad and not spec.torch_dtype.is_floating_point:
        raise PortableError(f"input {spec.name[:60]!r} can't require a gradient")
    return torch.empty(shape, dtype=spec.torch_dtype, device="meta").requires_grad_(spec.needs_grad)
