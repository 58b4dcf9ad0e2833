"""A device's profile: how fast it computes, what its link does; measured by `spliteasy profile`.

A plan compares a device's numbers with the same ones measured where it is made.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.nn import functional as F

from spliteasy.errors import JobError
from spliteasy.runtime.generators import states_kept

MIN_S = 0.15
"""Each measurement lasts at least this long; the fastest repetition counts."""
MAX_BYTES = 1 << 16

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ComputeProfile(_Part):
    """Training kernels of the usual sizes, forward and backward."""

    convolution_flop_s: Positive
    matmul_flop_s: Positive
    memory_bytes_s: Positive
    threads: Annotated[int, Field(ge=1)]

    def speeds_beside(self, here: ComputeProfile) -> tuple[float, float, float]:
        """Return the speed of this machine, where `here` has 1, for each of `costs.KINDS`."""
        return (
            self.convolution_flop_s / here.convolution_flop_s,
            self.matmul_flop_s / here.matmul_flop_s,
            self.memory_bytes_s / here.memory_bytes_s,
        )


class LinkProfile(_Part):
    """The link to a broker: rates in bytes a second, and a round trip."""

    up_bytes_s: Positive
    down_bytes_s: Positive
    rtt_s: NonNegative


class Overhead(_Part):
    """The time that agent, broker, worker and store take beside computing and the link."""

    round_trip_s: NonNegative
    byte_s: NonNegative


USUAL = Overhead(round_trip_s=0.01, byte_s=1e-8)
"""The overhead that is assumed where no profile gives another."""


class Profile(_Part):
    """The profile that `spliteasy profile` writes and `spliteasy plan --profile` reads."""

    format: Literal["spliteasy-profile"] = "spliteasy-profile"
    version: Literal[1] = 1
    machine: Annotated[str, Field(max_length=200)] = ""
    torch: Annotated[str, Field(max_length=100)] = ""
    compute: ComputeProfile
    link: LinkProfile | None = None
    overhead: Overhead | None = None


def read_profile(path: Path) -> Profile:
    """Raises JobError for a file that is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JobError(
            f"{path} can't be read: {error.strerror}", hint="`spliteasy profile -o FILE` writes one"
        ) from error
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        return Profile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise JobError(f"{path} is no device profile: {where} {first['msg']}".replace("  ", " ")) from error
    except ValueError as error:
        raise JobError(f"{path} is no device profile: {error}") from error


def machine() -> str:
    """The machine in words, without its name."""
    return f"{platform.system()} {platform.machine()}"


def measure_compute() -> ComputeProfile:
    """Time three training kernels here, with torch's present number of threads. Takes about a second."""
    with states_kept():
        return ComputeProfile(
            convolution_flop_s=_convolution(),
            matmul_flop_s=_matmul(),
            memory_bytes_s=_memory(),
            threads=torch.get_num_threads(),
        )


def _convolution(batch: int = 4, channels: int = 64, side: int = 28) -> float:
    """3 × 3, as in the middle of a residual network: forward and both gradients."""
    x = torch.randn(batch, channels, side, side, requires_grad=True)
    weight = torch.randn(channels, channels, 3, 3, requires_grad=True)
    flop = 3 * 2 * batch * channels * channels * 9 * side * side

    def step() -> None:
        made = F.conv2d(x, weight, padding=1)
        torch.autograd.grad(made, (x, weight), made.detach())

    return flop / _fastest_s(step)


def _matmul(rows: int = 512, width: int = 512) -> float:
    x = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(width, width, requires_grad=True)

    def step() -> None:
        made = F.linear(x, weight)
        torch.autograd.grad(made, (x, weight), made.detach())

    return 3 * 2 * rows * width * width / _fastest_s(step)


def _memory(count: int = 1 << 22) -> float:
    """One pass of an element-wise operator over more than caches hold: reads and writes."""
    x, out = torch.randn(count), torch.empty(count)
    return 2 * x.nbytes / _fastest_s(lambda: torch.add(x, 1.0, out=out))


def _fastest_s(run: Callable[[], object]) -> float:
    run()
    fastest, until = float("inf"), time.perf_counter() + MIN_S
    while time.perf_counter() < until:
        began = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - began)
    return fastest
