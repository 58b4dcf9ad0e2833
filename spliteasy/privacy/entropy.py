"""A device tests whether a law leaves anything to guess before it trusts the law of a job.

A worker that is an adversary could hand out a law that gives every device the same weights, or weights that
follow from a few numbers. Torch draws the trials here: nothing that is tried is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spliteasy.errors import PublicEnds
from spliteasy.graph.document import TensorSpec
from spliteasy.privacy.ends import Ends
from spliteasy.privacy.law import Step, draw_by_torch, run_law
from spliteasy.runtime.randomness import Key, drawing, state_of

MIN_SPREAD = 1e-3
"""Two draws of a weight matrix must differ by this, beside the mean square of its elements."""

MIN_SIZE = 1e-3
"""Root mean square of a weight matrix times the square root of its inputs: less acts as zeros do."""

MIN_CHANGED = 1 / 16
"""The part of a weight matrix's elements that must differ between two draws."""

TRIALS = 8
SMALL, TINY = 128, 16
"""Elements below which a matrix is tried with half of all numbers drawn again, or not at all."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """A part of the drawn numbers is drawn again: how often the matrix must change.

    A matrix that follows from d numbers changes with probability 1 − (1 − part)^d. With these figures one
    that follows from a single number passes in 1 of 1000 cases, from 64 numbers practically always.
    """

    part: float
    changes: int


_LARGE, _SMALL = _Trial(1 / 16, 4), _Trial(1 / 2, 7)


@dataclass(frozen=True, slots=True)
class Weight:
    """A trainable tensor of two dimensions or more."""

    role: str
    name: str
    size: int


def weights_of(role: str, table: Iterable[TensorSpec]) -> Iterator[Weight]:
    """The trainable matrices in a segment's table."""
    for spec in table:
        if spec.requires_grad and len(spec.shape) > 1:
            yield Weight(role, spec.name, torch.Size(spec.shape).numel())


def check_entropy(ends: Ends, weights: Iterable[Weight]) -> None:
    """Refuse ends that an adversary could guess although they pass for secret.

    Every trainable matrix that the job does not call public has to be drawn, from enough independent
    numbers. Raises PublicEnds, which names the first that is not, and PortableError for a faulty law.
    """
    secret = [w for w in weights if w.name not in ends.public_of(w.role)]
    weak = [w.name for w in secret if w.name not in ends.of(w.role)] or weak_weights(ends, secret)
    if weak:
        raise PublicEnds(
            f"the job's law gives {weak[0][:90]!r} nearly the same initial values on every device, "
            "so that the worker can guess them",
            hint="don't train this job; tell the person who submitted it",
        )


def weak_weights(ends: Ends, weights: Iterable[Weight]) -> list[str]:
    """The drawn weights whose law has too little entropy."""
    tried = [w for w in weights if w.name in ends.of(w.role)]
    if not tried:
        return []
    key = Key(os.urandom(32))
    with drawing(state_of(0)):
        once, again = _run(ends, key), _run(ends, key, changed=1.0)
        weak = {w for w in tried if _alike(once[w.role, w.name], again[w.role, w.name])}
        for trial in (_LARGE, _SMALL):
            of_size = [w for w in tried if w.size >= TINY and (w.size >= SMALL) == (trial is _LARGE)]
            weak.update(_follow_from_few(ends, key, once, trial, of_size))
    return [w.name for w in tried if w in weak]


_Values = dict[tuple[str, str], Tensor]


def _follow_from_few(
    ends: Ends, key: Key, once: _Values, trial: _Trial, weights: list[Weight]
) -> list[Weight]:
    changes = dict.fromkeys(weights, 0)
    for number in range(TRIALS if weights else 0):
        other = _run(ends, key, changed=trial.part, trial=number)
        for w in weights:
            changes[w] += not torch.equal(once[w.role, w.name], other[w.role, w.name])
    return [w for w, count in changes.items() if count < trial.changes]


def _run(ends: Ends, key: Key, *, changed: float = 0.0, trial: int = 0) -> _Values:
    """The drawn tensors; the part `changed` of all numbers is another than that of the key alone."""

    def fill(place: int, step: Step, out: Tensor) -> None:
        torch.default_generator.set_state(state_of(key.at("once", place)))
        draw_by_torch(step, out)
        if changed:
            torch.default_generator.set_state(state_of(key.at("again", trial, place)))
            other = torch.empty_like(out)
            draw_by_torch(step, other)
            out.copy_(torch.where(torch.rand(out.shape) < changed, other, out))

    views = run_law(ends.law, fill)
    return {
        (role, name): views[place].clone()
        for role, table in ends.drawn.items()
        for name, place in table.items()
    }


def _alike(once: Tensor, again: Tensor) -> bool:
    a, b = once.double(), again.double()
    if not a.numel() or not bool(a.isfinite().all()):
        return True
    square, apart = float((a * a + b * b).mean()) / 2, float((a - b).square().mean()) / 2
    too_small = square * (a.numel() / a.shape[0]) < MIN_SIZE**2
    return too_small or apart < MIN_SPREAD * square or float((a != b).double().mean()) < MIN_CHANGED
