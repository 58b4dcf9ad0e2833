"""Watch a model's factory, and tell how each of its tensors was drawn.

A dispatch mode sees every operator that torch runs, whatever class or function called it. Memory, not
tensors, is what it follows: views, in-place writes, tied weights and deep copies then need no care of their
own. What numpy or Python's own random numbers made comes from nowhere, and is said to be given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from spliteasy.errors import PortableError
from spliteasy.graph.document import DTYPE_NAMES, Ref
from spliteasy.graph.encoding import encode_argument
from spliteasy.graph.operators import PLACEMENT, UNINITIALISED
from spliteasy.privacy.law import SOURCES, Law, Memory, Step, View, check_step, draw_by_torch, run_law

_LOOKS = frozenset(
    {"aten._local_scalar_dense.default", "aten.is_nonzero.default", "aten.equal.default", "aten.item.default"}
)
"""Operators by which Python code looks at a tensor's values, to go on as they are."""

_MOVES = ("aten.set_.", "aten.resize_.", "aten.lift_fresh.", "aten.lift.", "aten.detach.", "aten.alias.")
"""Operators that change no element."""

_EMPTY = UNINITIALISED | {
    "aten.empty_strided.default",
    "aten.new_empty_strided.default",
    "aten.empty_permuted.default",
}

_FILLS = frozenset({"aten.fill_.Scalar", "aten.fill_.Tensor", "aten.zero_.default", "aten.copy_.default"})
"""Operators that leave nothing of what their first argument was."""

_WITH_OUT = {
    "aten.div.out": "aten.div.Tensor",
    "aten.mul.out": "aten.mul.Tensor",
    "aten.add.out": "aten.add.Tensor",
    "aten.sub.out": "aten.sub.Tensor",
}

_DRAWS: Mapping[str, Callable[..., tuple[str, tuple[float, ...]]]] = {
    "aten.uniform_.default": lambda _x, low=0.0, high=1.0: ("uniform", (low, high)),
    "aten.normal_.default": lambda _x, mean=0.0, std=1.0: ("normal", (mean, std)),
    "aten.bernoulli_.float": lambda _x, p=0.5: ("bernoulli", (p,)),
    "aten.exponential_.default": lambda _x, rate=1.0: ("exponential", (rate,)),
    "aten.random_.from": lambda _x, low, high: ("integers", (low, high)),
    "aten.random_.to": lambda _x, high: ("integers", (0, high)),
    "aten.rand.default": lambda _size: ("uniform", (0.0, 1.0)),
    "aten.rand.generator": lambda _size: ("uniform", (0.0, 1.0)),
    "aten.rand_like.default": lambda _x: ("uniform", (0.0, 1.0)),
    "aten.randn.default": lambda _size: ("normal", (0.0, 1.0)),
    "aten.randn.generator": lambda _size: ("normal", (0.0, 1.0)),
    "aten.randn_like.default": lambda _x: ("normal", (0.0, 1.0)),
    "aten.normal.float_float": lambda mean, std, _size: ("normal", (mean, std)),
    "aten.randint.default": lambda high, _size: ("integers", (0, high)),
    "aten.randint.generator": lambda high, _size: ("integers", (0, high)),
    "aten.randint.low": lambda low, high, _size: ("integers", (low, high)),
    "aten.randint.low_generator": lambda low, high, _size: ("integers", (low, high)),
    "aten.randperm.default": lambda _n: ("permutation", ()),
    "aten.randperm.generator": lambda _n: ("permutation", ()),
}
"""Torch's random operators as a law's sources."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor as a view of a block of memory, known by its address."""

    memory: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


def _held(storage: torch.UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class _Memory:
    dtype: torch.dtype
    size: int
    kept: StorageWeakRef
    """No other block has this address while the reference is held."""
    history: tuple[int, ...] = ()
    """The steps that made what the block holds now; those whose work was written over are gone."""


@dataclass(frozen=True, slots=True)
class _Step:
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: tuple[_Place, ...]
    needs: tuple[int, ...]
    """The steps whose work it reads."""
    random: bool = False
    given: bool = False
    """The value came from outside: a file, numpy, a tensor that was there before."""
    generator: Tensor | None = None
    """The state that torch's generator had before it drew."""


class NotALaw(Exception):
    """Why a tensor can't be drawn by a law: one of the reasons of `spliteasy.privacy.ends`."""


@dataclass(slots=True)
class Recording:
    """A record of what the factory did, step by step."""

    steps: list[_Step] = field(default_factory=list)
    memory: dict[int, _Memory] = field(default_factory=dict)
    looks: list[tuple[int, frozenset[int]]] = field(default_factory=list)
    """The places where Python code looked at values, and the sources that these came from."""

    def place_of(self, tensor: Tensor) -> _Place:
        """The memory that the tensor shows; memory that nobody saw being made counts as given.

        Raises NotImplementedError for a tensor without memory of its own, such as a sparse one.
        """
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self.memory:
            size = storage.nbytes() // max(1, tensor.element_size())
            self.memory[address] = _Memory(tensor.dtype, size, _held(storage))
            self._given(tensor, address)
        return _Place(
            address, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
        )

    def _given(self, tensor: Tensor, address: int) -> None:
        """A single number in the code (`torch.tensor(0.5)`) is a constant; anything larger is not known."""
        place = self.place_of(tensor)
        number: Any = None
        if tensor.numel() == 1 and self.memory[address].size == 1 and not tensor.is_complex():
            number = tensor.detach().reshape(()).item()
        args = (place, number)
        step = _Step("aten.fill_.Scalar", args, {}, (), (), given=number is None)
        self.memory[address].history = (self.add(step),)

    def add(self, step: _Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def history(self, places: Sequence[_Place]) -> tuple[int, ...]:
        return tuple(sorted({step for place in places for step in self.memory[place.memory].history}))

    def closure(self, steps: Sequence[int]) -> frozenset[int]:
        """These steps, and all that they need."""
        found: set[int] = set()
        todo = list(steps)
        while todo:
            step = todo.pop()
            if step not in found:
                found.add(step)
                todo.extend(self.steps[step].needs)
        return frozenset(found)

    def sources(self, steps: frozenset[int]) -> frozenset[int]:
        return frozenset(step for step in steps if self.steps[step].random)

    def made(self, tensor: Tensor) -> frozenset[int]:
        """The steps that made what the tensor holds."""
        return self.closure(self.history((self.place_of(tensor),)))

    def is_random(self, tensor: Tensor) -> bool:
        return bool(self.sources(self.made(tensor)))

    def is_given(self, tensor: Tensor) -> bool:
        return any(self.steps[step].given for step in self.made(tensor))

    def check(self, tensor: Tensor) -> None:
        """Raises NotALaw where what was recorded is not the law by which the tensor is drawn."""
        made = self.made(tensor)
        for step in sorted(made):
            if self.steps[step].given:
                raise NotALaw("loaded")
            if self._encoded_or_none(step) is None:
                raise NotALaw(f"operator {self.steps[step].op[:80]}")
        for at, sources in self.looks:
            if sources & made and any(step >= at for step in made):
                raise NotALaw("looked-at")

    def _encoded_or_none(self, number: int) -> Step | None:
        def first(place: _Place) -> int:
            self._check_dtype(place)
            return 0

        try:
            return _encoded(self.steps[number], first)
        except PortableError:
            return None

    def _check_dtype(self, place: _Place) -> None:
        if place.dtype not in DTYPE_NAMES or place.dtype != self.memory[place.memory].dtype:
            raise PortableError(f"{place.dtype} has no place in a law here")

    def law(self, tensors: Sequence[Tensor]) -> tuple[Law, tuple[int, ...], dict[int, Tensor]]:
        """The law of tensors that `check` lets pass, and the view of each.

        Also the state of torch's generator before each source, by its place in the law.
        """
        blocks: dict[int, int] = {}
        views: dict[View, int] = {}

        def number(place: _Place) -> int:
            block = blocks.setdefault(place.memory, len(blocks))
            view = View(memory=block, shape=place.shape, strides=place.strides, offset=place.offset)
            return views.setdefault(view, len(views))

        wanted = sorted(frozenset().union(*(self.made(tensor) for tensor in tensors)))
        steps = tuple(_encoded(self.steps[step], number) for step in wanted)
        results = tuple(number(self.place_of(tensor)) for tensor in tensors)
        memory = tuple(
            Memory(dtype=DTYPE_NAMES[self.memory[address].dtype], size=self.memory[address].size)  # type: ignore[arg-type]
            for address in blocks
        )
        states = {
            place: state
            for place, step in enumerate(wanted)
            if (state := self.steps[step].generator) is not None
        }
        return Law(memory=memory, views=tuple(views), steps=steps), results, states


def repeat(law: Law, states: Mapping[int, Tensor]) -> list[Tensor]:
    """The law's views as the factory drew them. Changes torch's default generator."""

    def draw(place: int, step: Step, out: Tensor) -> None:
        torch.default_generator.set_state(states[place])
        draw_by_torch(step, out)

    return run_law(law, draw)


def _encoded(step: _Step, number: Callable[[_Place], int]) -> Step:
    """The step as a law has it. Raises PortableError where it has no place in one."""

    def referred(value: Any) -> Any:
        if isinstance(value, _Place):
            return Ref(number(value))
        if isinstance(value, list | tuple):
            return [referred(item) for item in value]
        return value

    encoded = Step(
        op=step.op,
        args=tuple(encode_argument(referred(arg)) for arg in step.args),
        kwargs={name: encode_argument(referred(arg)) for name, arg in step.kwargs.items()},
        out=tuple(referred(place).slot for place in step.out),
    )
    check_step(encoded)
    return encoded


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator in a `Recording`."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recording = recording

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, random = str(func), torch.Tag.nondeterministic_seeded in func.tags
        placed = tree_map_only(Tensor, self._placed, (args, kwargs))
        state = (kwargs.get("generator") or torch.default_generator).get_state() if random else None
        result = func(*args, **kwargs)
        self._note(name, func, placed, result, state)
        return result

    def _placed(self, tensor: Tensor) -> _Place | Tensor:
        try:
            return self._recording.place_of(tensor)
        except NotImplementedError:
            return tensor  # it has no portable form, and so has nothing that is made from it

    def _note(self, name: str, func: Any, placed: Any, result: Any, state: Tensor | None) -> None:
        recording = self._recording
        args, kwargs = placed
        read = [leaf for leaf in tree_leaves(placed) if isinstance(leaf, _Place)]
        if name in _LOOKS:
            sources = recording.sources(recording.closure(recording.history(read)))
            recording.looks.append((len(recording.steps), sources))
            return
        if name.startswith(_MOVES) or torch.Tag.inplace_view in func.tags:
            return
        written = [
            place
            for argument, value in zip(func._schema.arguments, args, strict=False)
            for place in tree_leaves(value)
            if argument.is_write and isinstance(place, _Place)
        ]
        written += [leaf for leaf in tree_leaves(kwargs.get("out")) if isinstance(leaf, _Place)]
        fresh = [] if written else self._fresh(result)
        if not written and (not fresh or name in _EMPTY):
            return
        self.step(name, args, kwargs, read, written, fresh, state)

    def _fresh(self, result: Any) -> list[_Place]:
        """The results in memory of their own; an operator that shows its argument's writes nothing."""
        places = []
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            if tensor.layout is not torch.strided:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self._recording.memory:
                size = storage.nbytes() // max(1, tensor.element_size())
                self._recording.memory[storage._cdata] = _Memory(tensor.dtype, size, _held(storage))
                places.append(self._recording.place_of(tensor))
        return places

    def step(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        read: Sequence[_Place],
        written: Sequence[_Place],
        fresh: Sequence[_Place],
        state: Tensor | None,
    ) -> None:
        """Note a step that writes, and what its memory now holds."""
        recording = self._recording
        whole = len(written) == 1 and self._is_whole(written[0]) and (name in _FILLS or state is not None)
        if whole:
            read = [place for place in read if place != written[0]]
        op, given = _WITH_OUT.get(name, name), tuple(args)
        kept = {key: value for key, value in kwargs.items() if key not in {*PLACEMENT, "generator", "out"}}
        out = tuple(fresh) if name not in _WITH_OUT else tuple(written)
        if state is not None and name in _DRAWS:
            op, given = _DRAWS[name](*args)
        if op in SOURCES:
            kept, out = {}, (*written, *fresh)
        needs = recording.history((*read, *(() if whole else written)))
        step = recording.add(_Step(op, given, kept, out, needs, random=state is not None, generator=state))
        for place in (*written, *fresh):
            memory = recording.memory[place.memory]
            if memory.dtype != place.dtype and not memory.history and self._is_whole(place):
                memory.dtype = place.dtype
            memory.history = (step,) if whole or place in fresh else tuple(sorted({*memory.history, step}))

    def _is_whole(self, place: _Place) -> bool:
        """Return whether it shows every element of its memory."""
        memory = self._recording.memory[place.memory]
        return torch.Size(place.shape).numel() == memory.size and 0 not in (
            stride for stride, size in zip(place.strides, place.shape, strict=True) if size > 1
        )


@contextmanager
def recorded() -> Iterator[Recording]:
    """Record what this thread does with torch until the end of the block.

    `nn.init.trunc_normal_` draws again until every number fits: it is one source.
    """
    recording = Recording()
    recorder = _Recorder(recording)
    original = nn.init._no_grad_trunc_normal_

    def truncated(
        tensor: Tensor, mean: float, std: float, a: float, b: float, generator: torch.Generator | None = None
    ) -> Tensor:
        with _disable_current_modes():
            place = recording.place_of(tensor)
            state = (generator or torch.default_generator).get_state()
            result = original(tensor, mean, std, a, b, generator)
            numbers = (float(mean), float(std), float(a), float(b))
            recorder.step("trunc_normal", numbers, {}, (), (place,), (), state)
        return result

    nn.init._no_grad_trunc_normal_ = truncated
    try:
        with recorder:
            yield recording
    finally:
        nn.init._no_grad_trunc_normal_ = original
