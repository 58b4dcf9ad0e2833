"""`make parity`: split training equals plain PyTorch, bit for bit, for the networks that we promise.

Every network trains some steps whole and in segments, side by side, at each of its cuts; loss, outputs,
gradients, and at the end all weights, buffers and evaluation outputs are compared. The last line is
`max_abs_diff=0`; exits with 1 on any difference, and where a model that would lose gradients is not refused.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spliteasy import Boundary, Split
from spliteasy.errors import JobError
from spliteasy.splitting.export import trace_model
from spliteasy.splitting.split import split_traced
from spliteasy.training.reference import difference
from tests.models.untraceable import LOSE_GRADIENTS, Mid, Net
from tests.splitting.networks import LARGE, SMALL, Batch, Cuts, Network
from tests.splitting.parity import loss_of, step_split

PROMISED = (
    *LARGE,
    *("vit", "swin", "gpt", "gpt with dropout", "unet", "lstm", "gru", "dense"),
    *("two inputs", "several outputs", "written in place", "buffers", "easily lost"),
)
"""The six networks of the paper and two more, then one of each kind; each at three cuts or more."""
STEPS = 3
WIDTH = 170
"""Columns of the table where no terminal says its width."""
SEED = 0
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4


@dataclass(frozen=True, slots=True)
class Row:
    """One network at one cut, or pair of cuts."""

    network: str
    cuts: Cuts
    split: Split
    worst: float
    where: str
    """The tensor that differs most; empty if none does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NETWORK", choices=(SMALL | LARGE).keys())
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    names = options.only or PROMISED
    networks = {name: (SMALL | LARGE)[name] for name in names}
    console = Console(stderr=True)
    bar = Progress(
        *(TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        console=console,
    )
    rows = []
    with bar:
        task = bar.add_task("", total=sum(len(network.cuts) for network in networks.values()))
        for name, network in networks.items():
            bar.update(task, description=name)
            for row in compare_network(name, network, options.steps):
                rows.append(row)
                bar.advance(task)
    out = Console()
    Console(width=out.width if out.is_terminal else WIDTH).print(table(rows, options.steps))
    taken = [] if options.only else losing_and_taken()
    for name in taken:
        print(f"a model that would lose its gradients is not refused: {name}")
    for row in rows:
        if row.worst:
            print(f"{row.network} at {told(row.cuts)}: {row.where} differs by {row.worst:g}")
    worst = float("inf") if taken else max(row.worst for row in rows)
    print(f"max_abs_diff={worst:g}")
    return int(worst != 0)


def losing_and_taken() -> list[str]:
    """Models that a trace would train otherwise, and that are not refused as they must be."""
    taken = []
    for name, change in LOSE_GRADIENTS.items():
        with suppress(JobError):
            trace_model(Net(Mid(change)), torch.randn(4, 6))
            taken.append(name)
    return taken


def compare_network(name: str, network: Network, steps: int) -> Iterator[Row]:
    """Train at each of the network's cuts. The weights are the same for all of them."""
    torch.manual_seed(SEED)
    model = network.make().train()
    traced = trace_model(model, network.batch(2))
    batches = [network.batch(size) for size in (network.sizes * steps)[:steps]]
    for cuts in network.cuts:
        split = split_traced(traced, cuts)
        if split.regrouped:
            raise SystemExit(f"{name} at {told(cuts)} adds the gradients of {split.regrouped} otherwise")
        found = train_both(copy.deepcopy(model), split, batches, network.lr)
        where = max(found, key=lambda key: found[key])
        yield Row(name, cuts, split, found[where], where if found[where] else "")


def train_both(model: nn.Module, split: Split, batches: Sequence[Batch], lr: float) -> dict[str, float]:
    """Train both in step; the largest difference of everything that there is, by name."""
    found: dict[str, float] = {}
    optimizers = [_sgd(part, lr) for part in (model, *split.segments) if list(part.parameters())]
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        expected = _tensors(model(*batch))
        loss = loss_of(expected)
        loss.backward()
        torch.manual_seed(step)
        outputs, split_loss = step_split(split, batch)
        found[f"loss of step {step + 1}"] = difference(split_loss, loss)
        for place, (ours, theirs) in enumerate(zip(outputs, expected, strict=True)):
            found[f"output {place} of step {step + 1}"] = difference(ours, theirs)
        gradients = [
            {name: parameter.grad for name, parameter in part.named_parameters(remove_duplicate=False)}
            for part in (model, *split.segments)
        ]
        ours_by_name = {name: grad for part in gradients[1:] for name, grad in part.items()}
        for name, theirs_or_none in gradients[0].items():
            label = f"gradient of {name} in step {step + 1}"
            found[label] = _difference_or_none(ours_by_name[name], theirs_or_none)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    ours = split.state_dict()
    for name, tensor in model.state_dict().items():
        found[f"{name} at the end"] = difference(ours[name], tensor)
    return found | _evaluation(model, split, batches[0])


@torch.no_grad()
def _evaluation(model: nn.Module, split: Split, batch: Batch) -> dict[str, float]:
    model.eval()
    split.eval()
    made = split.head(*batch)
    got = split.body(*made[: split.head.n_wire])
    if split.tail is not None:
        got = split.tail(*got, *made[split.head.n_wire :])
    pairs = zip(_tensors(got), _tensors(model(*batch)), strict=True)
    return {f"evaluation output {place}": difference(*pair) for place, pair in enumerate(pairs)}


def table(rows: Sequence[Row], steps: int) -> Table:
    """Network, cuts, what crosses each, parameters per segment, largest difference."""
    grid = Table(title=f"Split against plain PyTorch, {steps} steps, 1 thread", title_justify="left")
    for column in ("network", "cuts"):
        grid.add_column(column, overflow="fold")
    for column in ("up", "down", "stays", "parameters", "largest difference"):
        grid.add_column(column, justify="right")
    last = ""
    for row in rows:
        if row.network != last and last:
            grid.add_section()
        split = row.split
        grid.add_row(
            row.network if row.network != last else "",
            told(row.cuts),
            crossing(split.boundaries[0]),
            crossing(split.boundaries[1]) if len(split.boundaries) > 1 else "labels up",
            str(len(split.skips)) if split.skips else "",
            " | ".join(f"{sum(p.numel() for p in part.parameters()):,}" for part in split.segments),
            f"{row.worst:g}",
        )
        last = row.network
    grid.caption = "up, down: tensors and bytes per sample; stays: values of the head for the tail"
    return grid


def crossing(boundary: Boundary) -> str:
    """`2 × 4,096 B`: values over the cut, and their bytes per sample."""
    each = boundary.bytes_for(2) - boundary.bytes_for(1)
    return f"{len(boundary.values)}: {each:,} B"


def told(cuts: Cuts) -> str:
    return cuts if isinstance(cuts, str) else " | ".join(cuts)


def _difference_or_none(ours: Tensor | None, theirs: Tensor | None) -> float:
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else float("inf")
    return difference(ours, theirs)


def _tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _sgd(module: nn.Module, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(
        module.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, foreach=False, fused=False
    )


if __name__ == "__main__":
    sys.exit(main())
