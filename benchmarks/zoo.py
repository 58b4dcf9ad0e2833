"""Models as people have them, from installed libraries, split at random cuts: `python -m benchmarks.zoo`.

Each model is built with random weights from a small configuration, called by keywords as its library means
it, cut between its blocks, and trained for some steps whole and in segments, side by side. The table says
for each model at how many cuts everything is equal to the last bit, and why the others are not. Exits with 1
where a model is exact at no cut, or differs without a reason.
"""

from __future__ import annotations

import argparse
import copy
import random
import re
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations

import torch
from torch import nn

from benchmarks.harness.report import Table, save, show_about
from benchmarks.harness.zoo_models import ZooModel, zoo
from benchmarks.harness.zoo_pictures import is_installed, picture_zoo
from benchmarks.parity import train_both
from spliteasy.errors import CutError, SplitEasyError
from spliteasy.splitting.calling import adapted
from spliteasy.splitting.export import TracedModel, trace_model
from spliteasy.splitting.places import cut_places
from spliteasy.splitting.split import split_traced

CUTS, STEPS = 3, 3
SIZES = (3, 2, 4)
"""Samples of each step."""


@dataclass(slots=True)
class Outcome:
    """The result for a model. `problem` says why it could not be tried at all."""

    name: str
    exact: list[str] = field(default_factory=list)
    regrouped: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    problem: str = ""
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        return bool(self.exact) and not self.differing and not self.problem

    def row(self) -> list[str]:
        tried = len(self.exact) + len(self.regrouped) + len(self.differing)
        refused = [each.partition(" (")[0] for each in self.refused[:1]]
        notes = [self.problem, *self.differing[:1], *self.regrouped[:1], *refused]
        return [
            self.name,
            f"{len(self.exact)} of {tried}",
            str(len(self.refused)),
            "; ".join(note for note in notes if note),
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="models whose names hold one of these")
    parser.add_argument("--cuts", type=int, default=CUTS, help="random legal pairs of cuts a model")
    parser.add_argument("--seed", type=int, default=0, help="of the cuts")
    options = parser.parse_args(argv)
    began = show_about()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    outcomes = list[Outcome]()
    for part in options.part:
        models, title = PARTS[part]
        found = [
            try_model(name, model, options.cuts, options.seed)
            for name, model in models().items()
            if not options.only or any(text.lower() in name.lower() for text in options.only)
        ]
        shown = table(title, found)
        shown.show()
        if not options.only and found:
            save(part, [asdict(outcome) for outcome in found], [shown], began)
        outcomes += found
    fine = sum(outcome.fine for outcome in outcomes)
    print(f"models={len(outcomes)} fine={fine}")
    return int(fine != len(outcomes) or not outcomes)


def installed_pictures() -> dict[str, ZooModel]:
    """Return the picture models whose library is installed; the others are named."""
    models = picture_zoo()
    there = {name: model for name, model in models.items() if is_installed(name)}
    if missing := sorted({name.partition(" ")[0] for name in models.keys() - there.keys()}):
        print(f"{' and '.join(missing)} can't be tried: install timm and torchvision", file=sys.stderr)
    return there


PARTS = {
    "zoo": (zoo, "Models of installed libraries at random cuts between blocks"),
    "zoo-pictures": (installed_pictures, "Families of timm and torchvision at random cuts between modules"),
}
"""The parts by the names that their figures are kept under: the models, and the table's title."""


def try_model(name: str, model: ZooModel, cuts: int = CUTS, seed: int = 0) -> Outcome:
    """Trace it once, and train it at so many random legal pairs of cuts between its blocks."""
    outcome, began = Outcome(name), time.monotonic()
    print(f"{name} …", file=sys.stderr, flush=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            built = model.make().train()
            traced = trace_model(built, model.batch(2))
            _at_random_cuts(outcome, model, built, traced, cuts, seed)
    except SplitEasyError as error:
        outcome.problem = str(error)
    outcome.seconds = time.monotonic() - began
    return outcome


def _at_random_cuts(
    outcome: Outcome, model: ZooModel, built: nn.Module, traced: TracedModel, cuts: int, seed: int
) -> None:
    pairs = list(combinations(blocks_of(traced, model.blocks), 2))
    random.Random(seed).shuffle(pairs)
    for pair in pairs:
        if len(outcome.exact) + len(outcome.regrouped) + len(outcome.differing) == cuts:
            return
        at = " | ".join(pair)
        try:
            split = split_traced(traced, pair, share_inputs=model.shared)
        except CutError as error:
            outcome.refused.append(str(error))
            continue
        whole = copy.deepcopy(built)
        batches = [tuple(model.batch(size).values()) for size in SIZES]
        with adapted(whole, tuple(model.batch(2))):
            found = train_both(whole, split, batches, model.lr)
        where = max(found, key=lambda key: found[key])
        told = f"{at}: {where} differs by {found[where]:.1g}"
        if not found[where]:
            outcome.exact.append(at)
        elif split.regrouped:
            outcome.regrouped.append(f"{told}, added in another order")
        else:
            outcome.differing.append(told)


def blocks_of(traced: TracedModel, pattern: str) -> list[str]:
    """The places after blocks, by the first of each place's names that the pattern fits, in order."""
    fitting = re.compile(rf"(.*\.)?({pattern})")
    found = []
    for name, _, others in cut_places(traced.train):
        known = [each for each in (name, *others) if fitting.fullmatch(each.partition("#")[0])]
        found += known[:1]
    return found


def table(title: str, outcomes: Sequence[Outcome]) -> Table:
    return Table(
        title, ["model", "same bits", "refused pairs", "why not"], [outcome.row() for outcome in outcomes]
    )


if __name__ == "__main__":
    sys.exit(main())
