"""A stand-in for an accelerator: a device of torch's own, `standin:0`, whose tensors no CPU kernel takes.

Its memory is the host's and its kernels are the CPU's, so that it gives the CPU's bits. Whatever meets a
tensor on the wrong side is refused, as by a real accelerator: a kernel with operands of both, a view as
numpy. Random numbers come from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"


class OnStandin(Tensor):
    """A tensor of the stand-in; `raw` is its memory, which no other code may touch."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> OnStandin:
        made: OnStandin = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        made.raw = raw
        return made

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.raw.untyped_storage()

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, OnStandin), "a weight of the stand-in is given a tensor of the host"
        self.raw = value.raw

    @classmethod
    def __torch_dispatch__(
        cls, call: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _dispatch(call, args, dict(kwargs or {}))


class _Module:
    """What `torch.get_device_module("standin")` gives."""

    generator = torch.Generator()
    draws = 0
    """How often a kernel drew random numbers."""
    fails_with: Exception | None = None
    """What the next kernel raises."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        """Return the types of its autocast: torch asks every backend for them."""
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @classmethod
    def manual_seed(cls, seed: int) -> None:
        cls.generator.manual_seed(seed)

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        cls.generator.manual_seed(seed)

    @classmethod
    def get_rng_state(cls, _device: Any = None) -> Tensor:
        return cls.generator.get_state()

    @classmethod
    def set_rng_state(cls, state: Tensor, _device: Any = None) -> None:
        cls.generator.set_state(state)


MODULE = _Module
_setup_privateuseone_for_python_backend(NAME, backend_module=_Module)
DEVICE = torch.device(NAME, 0)
_library = torch.library.Library("aten", "IMPL")


def _empty(size: Any, **kwargs: Any) -> Tensor:
    layout = kwargs.get("memory_format") or torch.contiguous_format
    return OnStandin(torch.empty(size, dtype=kwargs.get("dtype"), memory_format=layout))


def _empty_strided(size: Any, stride: Any, **kwargs: Any) -> Tensor:
    return OnStandin(torch.empty_strided(size, stride, dtype=kwargs.get("dtype")))


_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, OnStandin) else value


def _own(value: Any) -> Any:
    """The memory behind an operand; a tensor of the host may only be a number."""
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    if isinstance(value, Tensor) and not isinstance(value, OnStandin) and value.dim():
        raise RuntimeError("Expected all tensors to be on the same device, but found standin:0 and cpu")
    return _raw(value)


def _dispatch(call: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if _Module.fails_with is not None:
        error, _Module.fails_with = _Module.fails_with, None
        raise error
    name = call._schema.name
    if name == "aten::copy_":
        _raw(args[0]).copy_(_raw(args[1]))
        return args[0]
    if name == "aten::_to_copy":
        device = kwargs.pop("device", args[0].device)
        made = call(_raw(args[0]), **kwargs)
        return OnStandin(made) if device.type == NAME else made
    with _drawing(call):
        given, named = tree_map(_own, args), tree_map(_own, kwargs)
        made = call(*given, **named)
    known = {id(x.raw): x for x in tree_leaves((args, kwargs)) if isinstance(x, OnStandin)}
    return tree_map(lambda x: _wrapped(x, known) if isinstance(x, Tensor) else x, made)


def _wrapped(made: Tensor, known: Mapping[int, OnStandin]) -> Tensor:
    same = known.get(id(made))
    return OnStandin(made) if same is None else same


@contextmanager
def _drawing(call: Any) -> Iterator[None]:
    """Let a random kernel draw from the stand-in's generator, not from the CPU's."""
    if torch.Tag.nondeterministic_seeded not in call.tags:
        yield
        return
    _Module.draws += 1
    before = torch.random.get_rng_state()
    torch.random.set_rng_state(_Module.generator.get_state())
    try:
        yield
    finally:
        _Module.generator.set_state(torch.random.get_rng_state())
        torch.random.set_rng_state(before)
