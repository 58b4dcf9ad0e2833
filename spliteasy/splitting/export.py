"""Trace a model with `torch.export`: in training mode as the user left it, and in evaluation mode."""

from __future__ import annotations

import inspect
import logging
import operator
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.parameter import is_lazy

from spliteasy.errors import JobError, PortableError
from spliteasy.graph.checker import SHORTEST
from spliteasy.graph.lengths import FreeLength
from spliteasy.runtime.generators import states_kept
from spliteasy.splitting.calling import adapted, is_autocast
from spliteasy.splitting.functional import Recorder
from spliteasy.splitting.proof.model_state import left_as_it_was
from spliteasy.splitting.proof.plain_modes import fused_attention, inference_mode_as_no_grad
from spliteasy.splitting.proof.proof import prove
from spliteasy.splitting.proof.steadiness import refuse_unsteady
from spliteasy.splitting.remedies import tracing_error, users_line, with_place
from spliteasy.splitting.substitutes import substituted
from spliteasy.splitting.trace import (
    INPUT,
    TENSOR,
    ModuleCall,
    Op,
    TensorInfo,
    Trace,
    root_of,
    running_statistics,
)

_DROPPED = ("aten._assert", "aten.sym_constrain", "aten._assert_tensor_metadata")
"""Checks of the example: the loader has checks of its own."""

_CHATTY = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.export")

_NO_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled


@dataclass(frozen=True, slots=True)
class TracedModel:
    """A model in both modes. Trace once, cut as often as you like."""

    train: Trace
    eval: Trace
    paths: tuple[str, ...]
    """All module paths of the model."""
    example: tuple[Tensor, ...]
    """The example that the model was traced with."""
    longest: int = 0
    """The length of the longest samples, where their length is free; else 0."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes, in whole sentences, on what is right and may surprise the user."""
        return (*self.train.notes, *self.eval.notes)


def trace_model(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    *,
    free: FreeLength | None = None,
) -> TracedModel:
    """Trace with a batch (first) dimension that may vary, and prove the traces. The model is left as it was.

    A mapping of inputs is passed by keyword, and their order is that of the trace's inputs. `free` says where
    their length may vary as well.
    Raises `JobError` if the model can't be traced, uses what has no portable form, or gives something else
    than its traces.
    """
    names = tuple(example_inputs) if isinstance(example_inputs, Mapping) else None
    given = tuple(example_inputs.values()) if isinstance(example_inputs, Mapping) else example_inputs
    inputs = given if isinstance(given, tuple) else (given,)
    _refuse_lazy(model)
    with adapted(model, names), left_as_it_was(model, tensors=False):
        train = trace_inputs(model, inputs, "train", free=free)
        evaluation = trace_inputs(model.eval(), inputs, "eval", free=free)
    changing = {op.name for trace in (train, evaluation) for op in trace.written}
    for trace in (train, evaluation):
        _refuse_forgetting(trace)
        trace.settle(changing)
    paths = tuple(name for name, _ in model.named_modules() if name)
    return TracedModel(train, evaluation, paths, inputs, free.longest if free else 0)


def _refuse_forgetting(trace: Trace) -> None:
    """Refuse a buffer that moves and that no checkpoint would hold: a training that goes on would lose it."""
    for op in trace.written:
        info = trace.tensors.get(op)
        if info is not None and info.kind == "buffer" and not info.persistent:
            raise JobError(
                f"the model writes into its buffer {info.names[0]}, which has persistent=False: no "
                "checkpoint holds it, and a training that goes on would start it over",
                hint="register it without persistent=False",
            )


def _refuse_lazy(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise JobError(
                f"{name} of the model has no shape yet: lazy layers take theirs from a first batch",
                hint="call the model once in its factory, before it is returned",
            )


def trace_inputs(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    mode: Literal["train", "eval"],
    what: str = "model",
    *,
    free: FreeLength | None = None,
) -> Trace:
    """Trace the model in the present modes of its modules, and prove the trace. `what` is traced,
    for errors."""
    if not inputs or not all(isinstance(value, Tensor) and value.dim() for value in inputs):
        raise JobError("example inputs must be tensors with the batch first")
    if len({value.shape[0] for value in inputs}) > 1:
        raise JobError("example inputs differ in batch size")
    if free is not None:
        free.check(inputs)
    inputs = tuple(torch.cat((value, value)) if value.shape[0] == 1 else value for value in inputs)
    pinned: list[str] = []
    training = mode == "train"
    refuse_unsteady(model, inputs, training=training, what=what)
    try:
        with _plainly(model), _watching_sizes(pinned), substituted(model, inputs):
            exported = torch.export.export(
                model, inputs, dynamic_shapes=_free_dims(model, len(inputs), free), strict=False
            )
            trace = _Reader(model, exported, mode).read()
    except PortableError as error:
        raise JobError(f"the {what} can't be made portable: {error.message}", hint=error.hint) from None
    except JobError:
        raise
    except Exception as error:  # torch.export raises many types; for the user they mean one thing
        line = pinned[0] if pinned else None
        failed = tracing_error(f"the {what}", mode, model, error, line)
        raise (failed if free is None else _told_of_length(failed, free)) from error
    trace.notes = prove(model, trace, inputs, training=training, what=what, free=free)
    return trace


def _told_of_length(error: JobError, free: FreeLength) -> JobError:
    """The same error, for a model whose length is to be free: that is what may be in the way."""
    if not re.search(r"Constraints violated|specializ|constant", error.message):
        return error
    return JobError(
        f"{error.message}; its samples can't have any length of {SHORTEST} to {free.longest}",
        hint="take the length from x.shape, and write no number, list or loop of it; or leave "
        "model.max_length out of the job, and pad all samples to one length in the data",
    )


def _free_dims(model: nn.Module, count: int, free: FreeLength | None) -> tuple[Any, ...]:
    """The first dimension of every input is the batch; those that `*args` takes are a group of their own."""
    batch = Dim("batch")
    shapes = [{0: batch, **(free.dynamic(number) if free else {})} for number in range(count)]
    plain = 0
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return (*shapes[:plain], tuple(shapes[plain:]))
        plain += plain < count
    return tuple(shapes)


@contextmanager
def _watching_sizes(lines: list[str]) -> Iterator[None]:
    """Note the user's line where torch fixes a free size, or asks how it divides: its error comes later."""
    replace, guard = ShapeEnv._set_replacement, ShapeEnv._log_guard

    def noted(shapes: ShapeEnv, symbol: Any, value: Any, *args: Any) -> None:
        if value.is_number and (line := users_line()) is not None:
            lines.append(line)
        replace(shapes, symbol, value, *args)

    def divided(shapes: ShapeEnv, prefix: str, asked: Any, *args: Any, **kwargs: Any) -> None:
        if "//" in str(asked) and (line := users_line()) is not None:
            lines.append(line)
        guard(shapes, prefix, asked, *args, **kwargs)

    with (
        mock.patch.object(ShapeEnv, "_set_replacement", noted),
        mock.patch.object(ShapeEnv, "_log_guard", divided),
    ):
        yield


@contextmanager
def _plainly(model: nn.Module) -> Iterator[None]:
    """Tracing leaves the model as it was, and sees what torch does otherwise as what a graph can hold."""
    with (
        _quietly(),
        left_as_it_was(model, tensors=False),
        fused_attention(False),
        inference_mode_as_no_grad(),
    ):
        yield


@contextmanager
def _quietly() -> Iterator[None]:
    """Tracing must not move the user's random state, nor print torch's tracebacks beside our error."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with redirect_stderr(StringIO()), states_kept():
                yield
    finally:
        for logger, flag in zip(loggers, before, strict=True):
            logger.disabled = flag


class _Reader:
    """Turns an exported program into a `Trace`."""

    def __init__(self, model: nn.Module, exported: ExportedProgram, mode: str) -> None:
        self._exported = exported
        self._mode = mode
        self._recorder = Recorder(autocast=is_autocast(model))
        self._tensors: dict[Op, TensorInfo] = {}
        self._by_identity: dict[int, Op] = {}
        self._inputs: list[Op] = []
        self._known = _named_tensors(model)

    def read(self) -> Trace:
        graph = self._exported.graph_module.graph
        specs = {spec.arg.name: spec for spec in self._exported.graph_signature.input_specs}
        nodes = list(graph.nodes)
        fake_mode = next(n.meta["val"].fake_mode for n in nodes if isinstance(n.meta.get("val"), Tensor))
        # with torch's Python dispatcher, without which composite operators (lstm) pin the batch size
        with fake_mode, enable_python_dispatcher():
            for node in nodes:
                if node.op == "placeholder":
                    self._placeholder(node, specs[node.name])
            self._walk(self._exported.graph_module, nodes, grad=True)
            outputs = [self._recorder.widened(op) for op in self._outputs(nodes[-1])]
        ops = _settle_writes(self._recorder.ops, self._tensors)
        written = self._recorder.written | {tensor for op in ops for tensor in running_statistics(op)}
        trace = Trace(self._inputs, self._tensors, ops, outputs, frozenset(written))
        trace.settle()
        return trace

    def _placeholder(self, node: fx.Node, spec: Any) -> None:
        value = node.meta.get("val")
        if spec.kind is InputKind.USER_INPUT:
            op = Op(str(node.target), INPUT, value, raw=True)
            self._inputs.append(op)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            assert isinstance(value, Tensor), "torch.export gives each tensor its fake value"
            op = self._tensor(spec, value)
        else:
            raise JobError(
                f"the model takes {node.name} of kind {spec.kind.name}, which has no portable form"
            )
        self._recorder.place(node, op)

    def _tensor(self, spec: Any, value: Tensor) -> Op:
        """One op per tensor, whatever number of names the model has for it."""
        known = self._known.get(spec.target)
        if known is None:
            tensor = self._exported.constants[spec.target]
            info = TensorInfo(
                (f"constants.{self._mode}.{spec.target}",), "constant", tensor, persistent=False
            )
        else:
            info = known
        if id(info.tensor) not in self._by_identity:
            op = Op(info.names[0], TENSOR, value)
            self._by_identity[id(info.tensor)] = op
            self._tensors[op] = info
        return self._by_identity[id(info.tensor)]

    def _walk(self, owner: fx.GraphModule, nodes: Sequence[fx.Node], grad: bool) -> None:
        picked: dict[fx.Node, list[fx.Node]] = {}
        for node in nodes:
            if node.op != "call_function" or str(node.target).startswith(_DROPPED):
                continue
            if node.target is _NO_GRAD:
                picked[node] = self._inline(owner, node)
            elif node.target is operator.getitem and node.args[0] in picked:
                self._recorder.alias(node, picked[node.args[0]][node.args[1]])  # type: ignore[index]
            else:
                try:
                    self._recorder.record(node, grad, module_calls(node))
                except (PortableError, JobError) as error:
                    raise with_place(error, node) from None

    def _inline(self, owner: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
        """A region under `no_grad` or `enable_grad` is a graph of its own: its ops carry the flag instead."""
        flag, body, *outer = node.args
        inner: fx.GraphModule = getattr(owner, str(body.target))  # type: ignore[union-attr]
        nodes = list(inner.graph.nodes)
        for placeholder, given in zip((n for n in nodes if n.op == "placeholder"), outer, strict=True):
            self._recorder.alias(placeholder, given)  # type: ignore[arg-type]
        self._walk(inner, nodes, grad=bool(flag))
        return list(nodes[-1].args[0])

    def _outputs(self, node: fx.Node) -> list[Op]:
        outputs = []
        for value in node.args[0]:  # type: ignore[union-attr]
            held = self._recorder.current(value) if isinstance(value, fx.Node) else value
            if isinstance(held, Op):
                outputs.append(held)
            elif held is not None:
                raise JobError(f"the model returns {held!r}, which is neither a tensor nor None")
        if not outputs:
            raise JobError("the model returns no tensor")
        return outputs


def module_calls(node: fx.Node) -> tuple[ModuleCall, ...]:
    """The module calls that contain the node, outermost first. A second call is traced as `relu@1`."""
    calls = []
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        if not path or not str(key).startswith("L__self__"):
            continue
        _, _, again = str(key).rpartition("@")
        calls.append((path.partition("@")[0], int(again) + 1 if again.isdigit() and "@" in str(key) else 1))
    return tuple(calls)


def _named_tensors(model: nn.Module) -> dict[str, TensorInfo]:
    """All parameters and buffers by each of their names; a tied one has several, in one record."""
    names: dict[int, list[str]] = {}
    found: dict[str, tuple[Tensor, str]] = {}
    for kind, pairs in (
        ("parameter", model.named_parameters(remove_duplicate=False)),
        ("buffer", model.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in pairs:
            found[name] = (tensor, kind)
            names.setdefault(id(tensor), []).append(name)
    hidden = _hidden_buffers(model)
    return {
        name: TensorInfo(tuple(names[id(tensor)]), kind, tensor, persistent=name not in hidden)
        for name, (tensor, kind) in found.items()
    }


def _hidden_buffers(model: nn.Module) -> set[str]:
    """Buffers that the state dict leaves out."""
    return {
        f"{path}.{leaf}" if path else leaf
        for path, module in model.named_modules(remove_duplicate=False)
        for leaf in module._non_persistent_buffers_set
    }


def _settle_writes(ops: list[Op], tensors: dict[Op, TensorInfo]) -> list[Op]:
    """`self.buffer = value` is traced as a copy at the very end: move it to where the value is ready."""
    trailing: list[Op] = []
    while ops and ops[-1].target == "aten.copy_.default" and not ops[-1].calls and ops[-1].args[0] in tensors:
        trailing.insert(0, ops.pop())
    for write in trailing:
        buffer, source = write.args[:2]
        ready = max(
            (at for at, op in enumerate(ops) if op is source or buffer in op.uses or root_of(op) is buffer),
            default=-1,
        )
        ops.insert(ready + 1, write)
    return ops
