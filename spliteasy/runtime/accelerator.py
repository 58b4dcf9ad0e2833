"""The processors that torch computes on: the CPU, and the accelerators beside it (CUDA, XPU, MPS).

What a processor computes has the same bits each time: torch keeps to deterministic algorithms there, and to
float32 where it is asked for that. Other processors may give other bits, so that each describes itself.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from spliteasy.errors import UserError

V = TypeVar("V")

CPU = torch.device("cpu")
LANES = 4
"""Streams of an accelerator that sessions are spread over: one's copies run beside another's kernels."""

_WITH_STREAMS = ("cuda", "xpu")
"""Accelerators that copy from pinned memory while they compute, on several streams."""

_LOST = ("device-side assert", "CUDA error", "an illegal memory access", "device is lost", "DEVICE_LOST")
"""Text of the errors after which an accelerator gives this process nothing more."""


def processors() -> list[torch.device]:
    """Return the processors that torch finds here, the CPU first."""
    if not torch.accelerator.is_available():
        return [CPU]
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return [CPU, *(torch.device(kind.type, place) for place in range(torch.accelerator.device_count()))]


def processor_named(name: str) -> torch.device:
    """Return the processor of a name such as `cpu`, `cuda:0` or `mps`. Raises UserError for one that is not
    here."""
    found = processors()
    named = re.fullmatch(r"([a-z0-9]+?)(?::(\d{1,4}))?", name)
    if named is not None:
        kind, place = named[1], int(named[2] or 0)
        for each in found:
            if each.type == kind and (each.index or 0) == place:
                return each
    raise UserError(
        f"there is no processor {name} here: torch {torch.__version__} finds {', '.join(map(str, found))}",
        hint=_why_absent(name),
    )


def _why_absent(name: str) -> str:
    built_for = torch.version.cuda or torch.version.hip
    if name.startswith("cuda") and built_for is None:
        return "this torch was built for CPUs alone: install one that was built for CUDA"
    if name.startswith("cuda"):
        return "see whether `nvidia-smi` lists it, and whether this user or container may use it"
    return "name one of them"


def settle(processor: torch.device) -> None:
    """Make torch compute the same bits each time on the processor; before anything is computed on it.

    An operator that has no deterministic form there raises a RuntimeError from now on.
    """
    if processor.type == "cpu":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # free memory must not choose the kernels
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no graph sees it
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def description(processor: torch.device) -> str:
    """Return the words of the environment that name an accelerator; none for the CPU.

    What stands before the parenthesis decides the bits of its kernels; in it are the libraries and the
    driver, whose differences a probe tells.
    """
    if processor.type == "cpu":
        return ""
    name, libraries = _name_of(processor)
    plain = re.sub(r"[^A-Za-z0-9. _-]+", " ", name).strip()
    return f", on {processor.type} {plain} ({libraries})"


def _name_of(processor: torch.device) -> tuple[str, str]:
    """Return the name and capability of an accelerator, and what drives it."""
    if processor.type == "cuda":
        about = torch.cuda.get_device_properties(processor)
        driver = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        libraries = f"CUDA {torch.version.cuda}, driver {driver}, cuDNN {cudnn}"
        return f"{about.name} capability {about.major}.{about.minor}", libraries
    if processor.type == "xpu":
        card = torch.xpu.get_device_properties(processor)
        return card.name, f"driver {card.driver_version}"
    if processor.type == "mps":
        return f"Apple {platform.machine()}", f"macOS {platform.mac_ver()[0]}"
    module = torch.get_device_module(processor)
    name = module.get_device_name(processor) if hasattr(module, "get_device_name") else "accelerator"
    return str(name), "driver unknown"


def to_processor(values: Sequence[V], processor: torch.device) -> tuple[V, ...]:
    """Return the values with their tensors on the processor, of the same strides; those on it are not copied.

    The copies may still run: what is computed with them waits.
    """
    return tuple(cast(V, _sent(x, processor)) if isinstance(x, Tensor) else x for x in values)


def _sent(tensor: Tensor, processor: torch.device) -> Tensor:
    if tensor.device == processor:
        return tensor
    if processor.type in _WITH_STREAMS and tensor.device.type == "cpu":
        return tensor.pin_memory().to(processor, non_blocking=True)
    return tensor.to(processor)


def to_host(values: Sequence[V]) -> tuple[V, ...]:
    """Return the values with their tensors in the host's memory, detached; those there are not copied.

    All of the copies run at once, and have ended when this returns.
    """
    brought = tuple(cast(V, _brought(x)) if isinstance(x, Tensor) else x for x in values)
    for device in {x.device for x in values if isinstance(x, Tensor) and x.device.type in _WITH_STREAMS}:
        torch.get_device_module(device).current_stream(device).synchronize()
    return brought


def _brought(tensor: Tensor) -> Tensor:
    given = tensor.detach()
    if given.device.type not in _WITH_STREAMS or given.layout != torch.strided:
        return given.cpu()
    return torch.empty_like(given, device=CPU, pin_memory=True).copy_(given, non_blocking=True)


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the same names in the host's memory, detached."""
    return dict(zip(tensors, to_host(tuple(tensors.values())), strict=True))


@contextmanager
def lane(processor: torch.device, number: int) -> Iterator[None]:
    """Compute on one of the accelerator's streams, and wait for it at the end; the CPU has none.

    All that belongs to one body has to be computed on one lane, or the memory that it gives back may be
    given to another before its kernels have ended.
    """
    if processor.type not in _WITH_STREAMS:
        yield
        return
    module = torch.get_device_module(processor)
    with module.device(processor), module.stream(_stream(processor, number % LANES)):
        yield
        module.current_stream(processor).synchronize()


@cache
def _stream(processor: torch.device, number: int) -> Any:
    return torch.get_device_module(processor).Stream(processor)


def lanes_of(processor: torch.device) -> int:
    """Return how many computations run side by side on the processor."""
    return LANES if processor.type in _WITH_STREAMS else 1


def is_lost(error: BaseException) -> bool:
    """Return whether an accelerator has failed for good, as after a kernel's assertion: a new process may
    use it again."""
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or any(text in str(error) for text in _LOST)
