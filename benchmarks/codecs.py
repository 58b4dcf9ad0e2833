"""The speed of the codecs on one core, against copying the same tensor: `python -m benchmarks.codecs`.

Speeds are the tensor's own bytes over the time, so that they compare with each other and with the link.
Every round times a copy into warm memory and then each codec; the figures are medians over the rounds,
and the ratios to memcpy medians of the rounds' own ratios. The clock counts this thread's processor time,
which others on the machine don't add to.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.timed_runs import ALLOCATOR
from spliteasy.codecs import parse_codec

Result = TypeVar("Result")

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
        return goal(f"≥ {wanted}", met)


def tensors() -> dict[str, Tensor]:
    """Return tensors as they cross cuts: sizes as in W2 and W1, and of a vision transformer."""
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


def table_of(figures: list[Figure]) -> Table:
    """One tensor's codecs."""
    rows = []
    for one in figures:
        speeds = [
            f"{one.encode_gb_s:.2f}",
            f"{one.encode_x:.2f}",
            f"{one.decode_gb_s:.2f}",
            f"{one.decode_x:.2f}",
        ]
        if one.encode_gb_s > 100:  # faster than memory: nothing was touched
            speeds = ["no work", "", "no work", ""]
        rows.append([one.codec, f"{one.bytes_ratio:.3f}", *speeds, one.goal])
    head = ["codec", "bytes", "encode GB/s", "× memcpy", "decode GB/s", "× memcpy", "goal"]
    return Table(f"{figures[0].tensor}: memcpy {figures[0].memcpy_gb_s:.1f} GB/s", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if any(os.environ.get(key) != value for key, value in ALLOCATOR.items()):
        # Large buffers are used again instead of being mapped again: else this measures page faults.
        program = [sys.executable, "-m", "benchmarks.codecs", *sys.argv[1:]]
        os.execve(sys.executable, program, {**os.environ, **ALLOCATOR})
    torch.set_num_threads(1)
    began = show_about()
    figures, tables = [], []
    for name, tensor in tensors().items():
        figures += measure(name, tensor, arguments.rounds)
        tables.append(table_of(figures[-len(_NAMES) :]))
        tables[-1].show()
    save("codecs", [asdict(one) for one in figures], tables, began)


def _timed(call: Callable[[], Result]) -> tuple[float, Result]:
    start = time.thread_time()
    result = call()
    return time.thread_time() - start, result


if __name__ == "__main__":
    main()
