"""How fast the codecs are on one core, against copying the same tensor: `python -m benchmarks.codecs`.

Speeds are the tensor's own bytes over the time, so that they compare with each other and with the link.
Every round times a copy into warm memory and then each codec; the figures are medians over the rounds,
and the ratios to memcpy medians of the rounds' own ratios. The clock counts this thread's processor time,
which others on the machine don't add to. `--json FILE` writes the figures too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from spliteasy.codecs import parse_codec

Result = TypeVar("Result")

_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""Large buffers are used again instead of being mapped anew: else this measures page faults."""
_NAMES = ("fp32", "lossless", "fp16", "bf16", "int8", "int8 unbiased", "topk:0.01", "topk:0.1")
_GOALS = {"fp16": "0.8 memcpy", "bf16": "0.8 memcpy", "int8": "1.5 GB/s", "int8 unbiased": "1.5 GB/s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One codec on one tensor. Speeds in GB/s; `x`: over memcpy's in the same round."""

    tensor: str
    codec: str
    bytes_ratio: float
    encode_gb_s: float
    encode_x: float
    decode_gb_s: float
    decode_x: float
    memcpy_gb_s: float

    @property
    def goal(self) -> str:
        wanted = _GOALS.get(self.codec)
        if wanted is None:
            return ""
        amount = float(wanted.split()[0])
        met = (
            min(self.encode_x, self.decode_x) >= amount
            if wanted.endswith("memcpy")
            else min(self.encode_gb_s, self.decode_gb_s) >= amount
        )
        return f"{wanted}: {'met' if met else 'NOT met'}"


def tensors() -> dict[str, Tensor]:
    """What crosses cuts: sizes as in W2 and W1, and of a vision transformer."""
    torch.manual_seed(0)
    return {
        "ReLU activation 32x64x64x64": torch.randn(32, 64, 64, 64).relu_(),
        "image gradient 32x256x16x16": torch.randn(32, 256, 16, 16) * 1e-4,
        "channels-last gradient 32x256x16x16": (torch.randn(32, 256, 16, 16) * 1e-4).contiguous(
            memory_format=torch.channels_last
        ),
        "tokens 32x197x384": torch.randn(32, 197, 384),
    }


def measure(name: str, tensor: Tensor, rounds: int) -> list[Figure]:
    copy = torch.empty_like(tensor)
    times: dict[str, list[float]] = {}
    sizes = {}
    for turn in range(rounds + 1):
        spent = {"memcpy": _timed(lambda: copy.copy_(tensor))[0]}
        for text in _NAMES:
            codec, seed = parse_codec(text.split()[0]), turn if "unbiased" in text else None
            spent[f"{text} encode"], encoded = _timed(lambda: codec.encode(tensor, seed=seed))  # noqa: B023
            spent[f"{text} decode"], _ = _timed(
                lambda: codec.decode(  # noqa: B023
                    encoded.parts,  # noqa: B023
                    encoded.meta,  # noqa: B023
                    shape=tensor.shape,
                    dtype=tensor.dtype,
                )
            )
            sizes[text] = encoded.nbytes / tensor.nbytes
        if turn:  # the first warms up
            for key, value in spent.items():
                times.setdefault(key, []).append(value)

    def speed(key: str) -> float:
        return tensor.nbytes / statistics.median(times[key]) / 1e9

    def ratio(key: str) -> float:
        return statistics.median(base / own for base, own in zip(times["memcpy"], times[key], strict=True))

    return [
        Figure(
            tensor=name,
            codec=text,
            bytes_ratio=sizes[text],
            encode_gb_s=speed(f"{text} encode"),
            encode_x=ratio(f"{text} encode"),
            decode_gb_s=speed(f"{text} decode"),
            decode_x=ratio(f"{text} decode"),
            memcpy_gb_s=speed("memcpy"),
        )
        for text in _NAMES
    ]


def show(figures: list[Figure]) -> None:
    """A table as in docs/codecs.md."""
    print(f"\n{figures[0].tensor}: memcpy {figures[0].memcpy_gb_s:.1f} GB/s\n")
    print("| codec | bytes | encode GB/s | × memcpy | decode GB/s | × memcpy | goal |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for one in figures:
        if one.encode_gb_s > 100:  # faster than memory: nothing was touched
            print(f"| {one.codec} | {one.bytes_ratio:.3f} | no work | | no work | | {one.goal} |")
            continue
        print(
            f"| {one.codec} | {one.bytes_ratio:.3f} | {one.encode_gb_s:.2f} | {one.encode_x:.2f}"
            f" | {one.decode_gb_s:.2f} | {one.decode_x:.2f} | {one.goal} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if any(os.environ.get(key) != value for key, value in _ALLOCATOR.items()):
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.codecs", *sys.argv[1:]],
            {**os.environ, **_ALLOCATOR},
        )
    torch.set_num_threads(1)
    about = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}, "
    about += f"1 thread of {os.cpu_count()} cores, median of {arguments.rounds} rounds"
    print(about)
    figures = []
    for name, tensor in tensors().items():
        figures += measure(name, tensor, arguments.rounds)
        show(figures[-len(_NAMES) :])
    if arguments.json is not None:
        text = json.dumps({"about": about, "figures": [asdict(one) for one in figures]}, indent=1)
        arguments.json.write_text(text + "\n")


def _timed(call: Callable[[], Result]) -> tuple[float, Result]:
    start = time.thread_time()
    result = call()
    return time.thread_time() - start, result


if __name__ == "__main__":
    main()
