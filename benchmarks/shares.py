"""Two workers that each get a share of every gradient: what one of them can compute, and both sums tell.

    python -m benchmarks.shares [--steps 12] [--seed 0]

A backward is linear in the gradients that come into it. So a device can send two workers that do not collude
two shares that add up to the gradients of the body's outputs, each of which alone is noise; they add their
weight gradients, and both take the step of the whole. Measured on the digits with their canaries: the attacks
on labels, on the whole gradients and on one share; how far the sum of the two backwards is from one
backward; and an attack on what the two workers must tell each other, the batch's sum of weight
gradients, which is again linear in the batch's gradients and has more numbers than they have: it is solved
for them by conjugate gradients. The table goes to docs/privacy.md by `python -m benchmarks.harness.document`.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.defences import LABEL_ATTACKS, SHIPPED, Row, spec_of
from benchmarks.harness.accuracy_tasks import DATA, ROOT
from benchmarks.harness.report import Table, save, show_about
from examples.digits.model import DigitNet
from spliteasy.graph.segment import Segment
from spliteasy.job import Job
from spliteasy.observability import logs
from spliteasy.privacy.numbers import normal
from spliteasy.privacy.record import Adversary, Truth, View
from spliteasy.runtime.randomness import Key
from spliteasy.training.private_trainer import segment_trainer
from spliteasy_cli.leakage.gate import attacks_named
from spliteasy_cli.leakage.recorder import record, view_of
from spliteasy_cli.leakage.sample import draw_sample

MASK = 100.0
"""The size of a share's mask, in units of the largest gradient. More would cost the sum its digits."""

ITERATIONS = 250
ENOUGH = 1e-10


def recorded(seed: int, steps: int) -> tuple[View, Truth]:
    """A worker's view of a training of the digits job, and the truth."""
    job = Job.create(spec_of(Row("none", SHIPPED, {}), seed), ROOT)
    sample = draw_sample(job, DATA["digits"], ROOT, seed=seed)
    with TemporaryDirectory(prefix="spliteasy-shares-") as folder:
        made = asyncio.run(record(job, sample, Path(folder), steps=steps))
    return view_of(made, Adversary.WORKER), made.truth


def with_gradients(view: View, change: Callable[[Tensor, int], Tensor]) -> View:
    """The view with other gradients of the body's outputs; `change` gets each step's, and its number."""
    steps = []
    for number, (exchange,) in enumerate(view.steps, start=1):
        (gradient,) = exchange.output_gradients
        assert gradient is not None
        steps.append((replace(exchange, output_gradients=(change(gradient, number),)),))
    return replace(view, steps=tuple(steps))


def share_of(gradient: Tensor, step: int) -> Tensor:
    """The share of one worker; the other's is the mask."""
    return gradient - mask_of(gradient, step)


def mask_of(gradient: Tensor, step: int) -> Tensor:
    drawn = torch.from_numpy(normal(gradient.numel(), Key(bytes(32)).at("share", step)))
    return (drawn.reshape(gradient.shape) * MASK * float(gradient.abs().max())).to(gradient.dtype)


def weight_gradients(body: Segment, activations: Tensor, gradient: Tensor) -> Tensor:
    """The gradients of all of the body's weights, side by side."""
    copy = body.spawn().train()
    (output,) = copy.forward(activations)
    assert isinstance(output, Tensor)
    weights = [p for p in copy.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(output, weights, gradient)])


def solved(body: Segment, activations: Tensor, total: Tensor, like: Tensor) -> Tensor:
    """The gradients of the outputs whose weight gradients are `total`, by least squares (CGLS)."""
    net = DigitNet().double().train()
    net.load_state_dict(body.state_dict(), strict=False)
    output = net.pool(net.blocks(activations.double()))
    weights = list(net.blocks.parameters())
    probe = torch.zeros_like(output, requires_grad=True)
    columns = torch.autograd.grad(output, weights, probe, create_graph=True)
    made = torch.cat([g.flatten() for g in columns])

    def forward(gradient: Tensor) -> Tensor:
        found = torch.autograd.grad(output, weights, gradient, retain_graph=True)
        return torch.cat([g.flatten() for g in found])

    def backward(weight: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(made, probe, weight, retain_graph=True)
        return found

    guess, rest = torch.zeros_like(like, dtype=torch.float64), total.double()
    slope = backward(rest)
    direction, size = slope, float(slope.square().sum())
    least = ENOUGH * size
    for _ in range(ITERATIONS):
        if size <= least:
            break
        moved = forward(direction)
        length = size / float(moved.square().sum())
        guess, rest = guess + length * direction, rest - length * moved
        slope = backward(rest)
        before, size = size, float(slope.square().sum())
        direction = slope + (size / before) * direction
    return guess.to(like.dtype)


def canaries(view: View, truth: Truth) -> dict[str, float]:
    """The share of canaries that each attack on labels recovers."""
    found = {}
    for attack in attacks_named(LABEL_ATTACKS):
        if attack.refuses(view) is None:
            for score in attack.run(view).scores(truth):
                if score.limit == "canary_recovery":
                    found[attack.name] = score.value
    return found


def sums(view: View) -> tuple[float, View]:
    """The largest relative error of a sum of two backwards, and the view of who solves the sums.

    The body goes its way by the true gradients, as on both workers.
    """
    job = view.job
    trainer = segment_trainer(job.body.spawn(), job.spec, device=view.device, role="body")
    worst, found = 0.0, []
    for number, (exchange,) in enumerate(view.steps, start=1):
        (activations,), (gradient,) = exchange.activations, exchange.output_gradients
        assert isinstance(activations, Tensor)
        assert gradient is not None
        whole = weight_gradients(trainer.segment, activations, gradient)
        mask = mask_of(gradient, number)
        two = sum(weight_gradients(trainer.segment, activations, part) for part in (gradient - mask, mask))
        worst = max(worst, float((two - whole).norm() / whole.norm()))
        found.append(solved(trainer.segment, activations, whole, gradient))
        trainer.backward(trainer.forward((activations,)), (gradient,))
        trainer.apply()
    return worst, with_gradients(view, lambda _, step: found[step - 1])


def rows_of(scores: Sequence[tuple[str, dict[str, float]]]) -> list[list[str]]:
    rows = []
    for name, score in scores:
        most = max(score, key=lambda attack: score[attack])
        shown = [f"{score[attack]:.2f}" if attack in score else "" for attack in LABEL_ATTACKS[:4]]
        rows.append([name, *shown, f"{score[most]:.2f} ({most})"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shares", description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logs.configure("error")
    began = show_about()
    view, truth = recorded(options.seed, options.steps)
    error, told = sums(view)
    scores = [
        ("one worker, the whole gradients", canaries(view, truth)),
        ("one of two workers, its share", canaries(with_gradients(view, share_of), truth)),
        ("one of two workers, its share and the sum", canaries(told, truth)),
    ]
    head = ["who sees what", "cluster", "cosine", "spectral", "few labels", "worst"]
    title = f"Canaries recovered of gradients in two shares ({options.steps} steps)"
    table = Table(title, head, rows_of(scores))
    print(f"the sum of both backwards differs from one backward by {error:.0e} of its norm")
    table.show()
    save("shares", [{"name": name, "canaries": score} for name, score in scores], [table], began)


if __name__ == "__main__":
    main()
