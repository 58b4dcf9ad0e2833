"""Bodies on an accelerator, beside the CPU and plain PyTorch: `python -m benchmarks.accelerator`.

The bodies of W1 (ResNet-18 on small pictures) and of a transformer take steps through a worker's engine:
values come from the host's memory and gradients go back to it, as in a worker. Beside it, plain PyTorch takes
the same steps with the same copies on the same processor. The CPU computes with one thread. Where torch finds
no accelerator, the benchmark says so and measures the CPU alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.workloads import W1
from server_worker.engine.base import Backward, Body, Forward, OpenBody, Step, together
from server_worker.engine.local import perform_now
from spliteasy.codecs.packer import Packed
from spliteasy.job import Job
from spliteasy.job.file import parse_job
from spliteasy.runtime.accelerator import CPU, description, processors, settle

WIDTH, LAYERS, TOKENS, SAMPLES = 512, 6, 64, 16
GOAL, FROM_S = 1.1, 0.05
"""The engine's step takes this many times a plain one's at most, where that takes so many seconds or more."""


class Transformer(nn.Module):
    """Embedded tokens, an encoder (the body), and a classifier of the first token."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, dropout=0.0, batch_first=True)
        self.stem = nn.Embedding(1000, WIDTH)
        self.blocks = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.classifier = nn.Linear(WIDTH, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.blocks(self.stem(tokens))[:, 0])
        return logits


def example() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, TOKENS, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)


def transformer_job() -> Job:
    return Job.create(
        parse_job(
            {
                "name": "transformer",
                "batch_size": SAMPLES,
                "epochs": 1,
                "model": {
                    "factory": "benchmarks.accelerator:Transformer",
                    "example": "benchmarks.accelerator:example",
                    "cuts": ["stem", "blocks"],
                },
                "loss": {"name": "cross_entropy"},
                "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
            }
        ),
        None,
    )


def job_of(body: str) -> Job:
    """Return the job whose body is measured."""
    return transformer_job() if body == "transformer" else Job.create(parse_job(W1.job("w1")), None)


def plain_body(body: str) -> nn.Module:
    """Return the same body as a module of plain PyTorch."""
    return Transformer().blocks if body == "transformer" else W1.parts(W1.model())[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The seconds of a step of a body on a processor: the median of all laps."""

    body: str
    processor: str
    engine_s: float
    plain_s: float


def engine_step(job: Job, values: Tensor, gradients: Tensor, processor: torch.device) -> Callable[[], object]:
    """Return a function that takes one step through the engine."""
    body: Body = perform_now(OpenBody(job, "bench.phone-1", "phone-1"), processor)
    taken, samples = 0, len(values)

    def step() -> object:
        nonlocal taken
        taken += 1
        asked = Forward(body=body, micro=0, samples=samples, batch=samples, values=Packed((values,)))
        perform_now(asked, processor)
        backward = Backward(body=body, step=taken, gradients=Packed((gradients,)))
        return perform_now(together(backward, Step(body)), processor)

    return step


def plain_step(
    module: nn.Module, values: Tensor, gradients: Tensor, processor: torch.device
) -> Callable[[], object]:
    """Return a function that takes one step of plain PyTorch, with the copies that a worker's has."""
    module = module.to(processor).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, foreach=False)

    def step() -> object:
        given = values.to(processor).requires_grad_()
        outputs = module(given)
        outputs.detach().cpu()
        outputs.backward(gradients.to(processor))
        optimizer.step()
        optimizer.zero_grad()
        assert given.grad is not None
        return given.grad.cpu()

    return step


def seconds_of(step: Callable[[], object], laps: int) -> float:
    """Return the median seconds of a lap, after one that does not count."""
    step()
    spent = []
    for _ in range(laps):
        began = time.perf_counter()
        step()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def measure(body: str, processor: torch.device, laps: int) -> Figure:
    """Take steps of a body on a processor, through the engine and plainly."""
    settle(processor)
    job = job_of(body)
    samples = job.spec.batch_size
    generator = torch.Generator().manual_seed(1)
    values, gradients = (
        torch.randn(spec.shape_for(samples), generator=generator) * scale
        for spec, scale in ((job.body.input_values[0], 0.1), (job.body.output_values[0], 1e-4))
    )
    return Figure(
        body=body,
        processor=str(processor),
        engine_s=seconds_of(engine_step(job, values, gradients, processor), laps),
        plain_s=seconds_of(plain_step(plain_body(body), values, gradients, processor), laps),
    )


def table_of(figures: Sequence[Figure]) -> Table:
    """Return the figures with those of the CPU beside them, and the goal on an accelerator."""
    cpu_s = {one.body: one.engine_s for one in figures if one.processor == str(CPU)}
    rows = [
        [
            one.body,
            one.processor,
            f"{1000 * one.engine_s:.1f}",
            f"{1000 * one.plain_s:.1f}",
            f"{one.engine_s / one.plain_s:.2f}",
            f"{cpu_s[one.body] / one.engine_s:.1f}",
            goal(f"≤ {GOAL} of plain", one.engine_s <= GOAL * one.plain_s)
            if one.plain_s >= FROM_S and one.processor != str(CPU)
            else "",
        ]
        for one in figures
    ]
    head = ["body", "processor", "ms a step, engine", "ms a step, plain", "of plain", "times the CPU's speed"]
    return Table("Steps of bodies by processor", [*head, "goal"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--laps", type=int, default=10)
    laps = parser.parse_args().laps
    torch.set_num_threads(1)
    began, found = show_about(), processors()
    if found == [CPU]:
        print("torch finds no accelerator here: these are figures of the CPU alone, and tell nothing of one")
    for each in found[1:]:
        print(f"{each}{description(each)}")
    figures = [measure(body, each, laps) for each in found for body in ("W1", "transformer")]
    table = table_of(figures)
    table.show()
    save("accelerator", [asdict(one) for one in figures], [table], began)


if __name__ == "__main__":
    main()
