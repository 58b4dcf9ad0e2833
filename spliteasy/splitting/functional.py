"""Record operators while making the in-place ones functional.

A model that writes into an activation (`relu_`, `x += y`, `x[:, 0] = 1`) gives the value under one name
two meanings, and a cut between them would send the wrong one. So each such operator becomes its
functional form, and every later use of the tensor, of a view of it, or of what it is a view of, sees
the new value. Writes into parameters and buffers stay: that is what running statistics are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from spliteasy.errors import JobError, PortableError
from spliteasy.graph.operators import (
    ATEN,
    BUILTINS,
    PLACEMENT,
    is_in_place,
    makes_from_nothing,
    name_of,
    operator_of,
)
from spliteasy.splitting.autocast import LOW, casts_of
from spliteasy.splitting.substitutes import STANDS_FOR
from spliteasy.splitting.trace import TENSOR, ModuleCall, Op, replaced, root_of

_END = 2**63 - 1
_RESHAPING = frozenset(
    f"aten.{name}"
    for name in (
        "view.default", "reshape.default", "view_as.default", "reshape_as.default", "_unsafe_view.default",
        "flatten.using_ints", "unflatten.int", "squeeze.default", "squeeze.dim", "squeeze.dims",
        "unsqueeze.default", "ravel.default",
    )
)  # fmt: skip
_IDENTITIES = frozenset(
    f"aten.{name}"
    for name in (
        "alias.default", "detach.default", "contiguous.default", "to.dtype", "to.dtype_layout", "to.other",
        "type_as.default", "dropout.default", "feature_dropout.default", "alpha_dropout.default",
        "expand.default", "expand_as.default",
    )
)  # fmt: skip


class Recorder:
    """Takes fx nodes one by one, runs them on fake values, and keeps the functional ops."""

    def __init__(self, *, autocast: bool = False) -> None:
        """`autocast`: put in the casts that the model makes under autocast."""
        self.ops: list[Op] = []
        self._autocast = autocast
        self._cast_weights: dict[tuple[Op, torch.dtype], Op] = {}
        self.written: set[Op] = set()
        self._now: dict[fx.Node, tuple[int, Any]] = {}  # (age of its memory, op or plain number)
        self._parent: dict[fx.Node, fx.Node] = {}  # whose memory it shows
        self._same: dict[fx.Node, fx.Node] = {}
        self._age: dict[fx.Node, int] = {}  # of a root: how often it was written
        self._names: dict[str, int] = {}
        self._calls: tuple[ModuleCall, ...] = ()

    def place(self, node: fx.Node, op: Op) -> None:
        """An input or a tensor of the model."""
        self._now[node] = (0, op)

    def alias(self, node: fx.Node, other: fx.Node) -> None:
        """`node` is but another name of `other`."""
        self._same[node] = self._real(other)

    def current(self, node: fx.Node) -> Any:
        """The op (or plain number) that holds what `node` stands for now."""
        node = self._real(node)
        age, held = self._now[node]
        present = self._age.get(self._root(node), 0)
        if age == present or node not in self._parent:
            return held
        name, args, kwargs = self._call(node)
        again = self._emit(name, args, kwargs, grad=held.grad, stem=node.name)
        self._now[node] = (present, again)
        return again

    def record(self, node: fx.Node, grad: bool, calls: tuple[ModuleCall, ...]) -> None:
        """Raises `PortableError` for an operator off the list, `JobError` for a write it can't follow."""
        self._calls = calls
        if isinstance(node.kwargs.get("out"), fx.Node):
            self._record_out(node, grad)
            return
        name, args, kwargs = self._call(node)
        if _writes(name):
            self._record_write(node, node.args[0], name, args, kwargs, grad)
            return
        made = self._emit(name, args, kwargs, grad=grad, stem=node.name)
        parent = self._shown_by(node, made)
        if parent is not None:
            self._parent[node] = parent
        self._now[node] = (self._age.get(self._root(node), 0), made)

    def _call(self, node: fx.Node) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """The name and the arguments, as they are now."""
        target, args, kwargs = portable_call(node)
        held_args, held_kwargs = fx.node.map_arg((args, kwargs), self.current)
        name = str(target) if _functional_name(str(target)) in ATEN else name_of(target)
        return name, tuple(held_args), dict(held_kwargs)

    def _emit(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        grad: bool,
        stem: str,
        keep: bool = True,
    ) -> Any:
        """Run on the fake values and keep the op. A plain number is not kept: it is a constant."""
        if self._autocast:
            args, kwargs = self._with_casts(name, args, kwargs, grad)
        fakes = replaced(list(args), lambda op: op.value)
        fake_kwargs = {key: replaced(value, lambda op: op.value) for key, value in kwargs.items()}
        if makes_from_nothing(name):
            fake_kwargs["device"] = "cpu"
        with torch.set_grad_enabled(grad):
            value = operator_of(name)(*fakes, **fake_kwargs)
        if isinstance(value, int | float):
            return value
        op = Op(self._fresh(stem) if keep else stem, name, value, args, kwargs, grad, self._calls)
        if keep:
            self.ops.append(op)
        return op

    def _with_casts(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], grad: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as autocast gives them to the operator."""
        if name in BUILTINS or is_in_place(name) or makes_from_nothing(name):
            return args, kwargs  # autocast leaves these alone
        fakes = replaced(list(args), lambda op: op.value)
        fake_kwargs = {key: replaced(value, lambda op: op.value) for key, value in kwargs.items()}
        with torch.set_grad_enabled(grad):
            casts = casts_of(operator_of(name), name, fakes, fake_kwargs)
        if not casts:
            return args, kwargs

        def cast(op: Op) -> Op:
            return self._cast(op, casts[id(op.value)], grad) if id(op.value) in casts else op

        return tuple(replaced(list(args), cast)), {key: replaced(x, cast) for key, x in kwargs.items()}

    def _cast(self, op: Op, dtype: torch.dtype, grad: bool) -> Op:
        """A cast of its own for each use, but for weights: autocast keeps those that it has cast."""
        known = self._cast_weights.get((op, dtype))
        if known is not None:
            return known
        made: Op = self._emit("aten.to.dtype", (op, dtype), {}, grad=grad, stem=f"{op.name}_cast")
        if op.target == TENSOR and op.needs_grad and dtype == LOW:
            self._cast_weights[op, dtype] = made
        return made

    def widened(self, op: Op) -> Op:
        """The op as float32, where it has autocast's dtype."""
        if not (self._autocast and isinstance(op.value, Tensor) and op.value.dtype == LOW):
            return op
        self._calls = ()
        return self._cast(op, torch.float32, op.needs_grad or op.grad)

    def _fresh(self, stem: str) -> str:
        count = self._names.get(stem, 0)
        self._names[stem] = count + 1
        return f"{stem}.{count}" if count else stem

    def _real(self, node: fx.Node) -> fx.Node:
        while node in self._same:
            node = self._same[node]
        return node

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self._parent:
            node = self._parent[node]
        return node

    def _shown_by(self, node: fx.Node, made: Any) -> fx.Node | None:
        """The argument whose memory the result shows."""
        storages = _storages(made)
        if not storages:
            return None
        for used in node.all_input_nodes:
            real = self._real(used)
            if storages & _storages(self._now[real][1]):
                whole = isinstance(self._now[real][1].value, Tensor) or real in self._parent
                return real if whole else None  # one of several fresh outputs shows nothing but itself
        return None

    def _record_out(self, node: fx.Node, grad: bool) -> None:
        """`out=` names where the result goes: it is computed, then copied there: the same numbers."""
        kwargs = {key: value for key, value in node.kwargs.items() if key not in (*PLACEMENT, "out")}
        held_args, held_kwargs = fx.node.map_arg((node.args, kwargs), self.current)
        name, where = name_of(without_out(node.target)), node.kwargs["out"]
        made = self._emit(name, tuple(held_args), dict(held_kwargs), grad=grad, stem=node.name)
        written = (self.current(where), made)  # type: ignore[arg-type]
        self._record_write(node, where, "aten.copy_.default", written, {}, grad)

    def _record_write(
        self, node: fx.Node, where: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], grad: bool
    ) -> None:
        target = self._real(where)
        old: Op = args[0]
        if root_of(old).target == TENSOR:
            self.written.add(root_of(old))
            self._emit(name, args, kwargs, grad=grad, stem=node.name)
            self.alias(node, target)
            return
        self._refuse_untracked(node, target, old, grad)
        new = self._functional(name, args, kwargs, grad, node.name, exact=target not in self._parent)
        root = self._root(target)
        view = target
        while view in self._parent:
            new = self._put_back(view, self._parent[view], new)
            view = self._parent[view]
        self._age[root] = self._age.get(root, 0) + 1
        self._now[root] = (self._age[root], new)  # views of it are made again when they are used next
        self.alias(node, target)

    def _refuse_untracked(self, node: fx.Node, target: fx.Node, old: Op, grad: bool) -> None:
        """A write that autograd does not see has no functional form."""
        if not grad and old.value.requires_grad:
            raise JobError(
                f"{node.name} writes into an activation under no_grad", hint="compute a new tensor instead"
            )
        while target in self._parent:
            if self._now[target][1].target == "aten.detach.default" and self._held(self._parent[target]):
                raise JobError(
                    f"{node.name} writes into a detached activation", hint="clone it before the write"
                )
            target = self._parent[target]

    def _held(self, node: fx.Node) -> bool:
        value = self._now[node][1].value
        return isinstance(value, Tensor) and value.requires_grad

    def _functional(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], grad: bool, stem: str, exact: bool
    ) -> Op:
        """The functional form if it keeps the dtype (and, if `exact`, the layout), else on a copy."""
        old: Op = args[0]
        functional = _functional_name(name)
        if functional in ATEN:
            tried: Op = self._emit(functional, args, kwargs, grad=grad, stem=stem, keep=False)
            if _layout(tried.value) == _layout(old.value) or (
                not exact and tried.value.dtype == old.value.dtype
            ):
                tried.name = self._fresh(stem)
                self.ops.append(tried)
                return tried
        copy = self._emit("aten.clone.default", (old,), {}, grad=grad, stem=f"{stem}_copy")
        if exact and _layout(copy.value) != _layout(old.value):
            raise JobError(
                f"{stem} writes into a tensor that overlaps itself", hint="compute a new tensor instead"
            )
        written: Op = self._emit(name, (copy, *args[1:]), kwargs, grad=grad, stem=stem)
        return written

    def _put_back(self, child: fx.Node, parent: fx.Node, new: Op) -> Op:
        """Return the new value of `parent`, now that its view `child` is `new`."""
        old: Op = self.current(parent)
        view: Op = self._now[child][1]
        made: Op
        name, rest = view.target, view.args[1:]
        if name == "aten.slice.Tensor":
            made = self._write_back("aten.slice_scatter.default", (old, new, *rest), child)
        elif name == "aten.select.int":
            made = self._write_back("aten.select_scatter.default", (old, new, *rest), child)
        elif name in _RESHAPING:
            made = self._write_back("aten.reshape_as.default", (new, old), child)
        elif name in ("aten.transpose.int", "aten.t.default"):
            dims = rest or ((0, 1) if old.value.dim() == 2 else (0, 0))
            made = self._write_back("aten.transpose.int", (new, *dims), child)
        elif name == "aten.permute.default":
            order = [dim % old.value.dim() for dim in rest[0]]
            made = self._write_back(
                "aten.permute.default", (new, [order.index(d) for d in range(len(order))]), child
            )
        elif name in _IDENTITIES and _layout(view.value) == _layout(old.value):
            return new
        else:
            raise JobError(
                f"{child.name}, a view by {name}, is written into", hint="clone it before the write"
            )
        if _layout(made.value) != _layout(old.value):
            fresh = self._write_back("aten.empty_like.default", (old,), child)
            made = self._write_back("aten.copy_.default", (fresh, made), child)
        return made

    def _write_back(self, name: str, args: tuple[Any, ...], child: fx.Node) -> Op:
        made: Op = self._emit(name, args, {}, grad=True, stem=f"{child.name}_written")
        return made


def portable_call(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Target and arguments in portable form: no devices, no "to the end" integers, no lifting."""
    aten, target, args = torch.ops.aten, STANDS_FOR.get(node.target, node.target), node.args
    kwargs = {key: value for key, value in node.kwargs.items() if key not in PLACEMENT}
    if target is aten.detach_.default:
        target = aten.detach.default
    elif target is aten.lift_fresh_copy.default:
        target = aten.clone.default
    elif target is aten.to.device:
        target, args = aten.to.dtype, (args[0], *args[2:])
    elif target is aten.slice.Tensor:
        args = tuple(None if type(arg) is int and arg >= _END else arg for arg in args)
    return target, args, kwargs


def without_out(target: Any) -> Any:
    """The overload that takes what an `out=` overload takes, and gives the result back."""
    packet = target.overloadpacket
    wanted = [(arg.name, str(arg.type)) for arg in target._schema.arguments if not arg.is_out]
    for name in packet.overloads():
        overload = getattr(packet, name)
        if [(arg.name, str(arg.type)) for arg in overload._schema.arguments] == wanted:
            return overload
    raise PortableError(f"{target} has no form without out=")


def _writes(name: str) -> bool:
    return _functional_name(name) in ATEN or is_in_place(name)


def _functional_name(name: str) -> str:
    """`aten.relu_.default` → `aten.relu.default`; empty for an operator that does not end in `_`."""
    base, _, overload = name.rpartition(".")
    return f"{base.removesuffix('_')}.{overload}" if base.endswith("_") else ""


def _layout(value: Tensor) -> tuple[torch.dtype, str, str]:
    return value.dtype, str(tuple(value.shape)), str(tuple(value.stride()))


def _storages(held: Any) -> set[int]:
    value = held.value if isinstance(held, Op) else held
    if isinstance(value, Tensor):
        return {value.untyped_storage()._cdata}
    if isinstance(value, list | tuple):
        return {item.untyped_storage()._cdata for item in value if isinstance(item, Tensor)}
    return set()
