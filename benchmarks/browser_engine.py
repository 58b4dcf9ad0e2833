"""The browser's engine beside PyTorch on one thread: one forward and backward of a head, by turns.

Node runs what ships in `device_agent/web/dist`. Both compute the same graph on the same values, with
gradients of the weights and none of the input, as the head of a training has them.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spliteasy.graph.segment import Segment
from spliteasy.splitting.export import trace_model
from spliteasy.splitting.split import split_traced

WEB = Path(__file__).resolve().parents[1] / "device_agent" / "web"
GOAL = 1.2
"""PyTorch's time times this, for the stem of a ResNet."""


@dataclass(frozen=True)
class Head:
    name: str
    model: Callable[[], nn.Module]
    cut: str
    shape: tuple[int, ...]
    goal: float | None = None


def _resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def _digits() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )


def _mobile() -> nn.Module:
    def block(channels: int, out: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
            *(
                nn.BatchNorm2d(channels),
                nn.ReLU6(),
                nn.Conv2d(channels, out, 1, bias=False),
                nn.BatchNorm2d(out),
            ),
            nn.ReLU6(),
        ]

    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), *block(32, 64, 1), *block(64, 128, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    )


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True, activation="gelu")
    return nn.Sequential(layer, nn.Linear(64, 10))


HEADS = (
    Head("ResNet stem, 32 × 3 × 64 × 64", _resnet, "3", (32, 3, 64, 64), GOAL),
    Head("digits, 30 × 1 × 8 × 8", _digits, "2", (30, 1, 8, 8)),
    Head("MobileNet blocks, 8 × 3 × 64 × 64", _mobile, "0", (8, 3, 64, 64)),
    Head("transformer layer, 8 × 32 × 64", _transformer, "0", (8, 32, 64)),
)


class Browser:
    """The engine in a process of Node."""

    def __init__(self, segment: Segment, inputs: Tensor, weights: Tensor) -> None:
        job = {
            "graph": base64.b64encode(segment.graph_json()).decode(),
            "tensors": base64.b64encode(segment.tensors_bytes()).decode(),
            "inputs": [_packed(inputs)],
            "weights": [_packed(weights)],
        }
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "job.json"
        path.write_text(json.dumps(job))
        node = shutil.which("node")
        if node is None:
            sys.exit("error: Node is needed for the browser's engine (apt-get install nodejs)")
        self._process = subprocess.Popen(
            [node, str(WEB / "bench.mjs"), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ms(self) -> float:
        return float(self._ask("step"))

    def memory(self) -> dict[str, int]:
        figures: dict[str, int] = json.loads(self._ask("memory"))
        return figures

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


def _packed(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "data": base64.b64encode(tensor.numpy().tobytes()).decode()}


def _torch_ms(segment: Segment, inputs: Tensor, weights: Tensor) -> float:
    began = time.perf_counter()
    segment(inputs)[0].backward(weights)
    spent = time.perf_counter() - began
    segment.zero_grad()
    return 1000 * spent


def measure(head: Head, turns: int) -> tuple[float, float, dict[str, int]]:
    """The median milliseconds of PyTorch and of the engine, and the engine's memory."""
    torch.manual_seed(0)
    inputs = torch.randn(*head.shape)
    segment = split_traced(trace_model(head.model(), (inputs[:2],)), (head.cut,)).segments[0].train()
    with torch.no_grad():
        weights = torch.randn_like(segment(inputs)[0])
    browser = Browser(segment, inputs, weights)
    try:
        pairs = [(_torch_ms(segment, inputs, weights), browser.ms()) for _ in range(turns + 3)][3:]
        memory = browser.memory()
    finally:
        browser.close()
    return (
        statistics.median(ours for ours, _ in pairs),
        statistics.median(theirs for _, theirs in pairs),
        memory,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.browser_engine", description=__doc__)
    parser.add_argument("--turns", type=int, default=21, help="forwards and backwards of each (21)")
    parser.add_argument("--only", help="heads whose name has this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'head':36} {'PyTorch':>9} {'browser':>9} {'ratio':>6}  goal  memory")
    missed = False
    for head in HEADS:
        if options.only and options.only not in head.name:
            continue
        pytorch, browser, memory = measure(head, options.turns)
        ratio = browser / pytorch
        goal = "" if head.goal is None else f"{head.goal}"
        missed = missed or (head.goal is not None and ratio > head.goal)
        peak = f"{memory['peak'] / 2**20:.0f} MiB"
        print(f"{head.name:36} {pytorch:7.2f}ms {browser:7.2f}ms {ratio:6.2f}  {goal:4}  {peak}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
