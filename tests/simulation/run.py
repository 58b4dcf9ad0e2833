"""Play one seed from beginning to end, in this process."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import structlog
import torch

from spliteasy.job import Job
from tests.simulation import toy
from tests.simulation.clock import run_virtually
from tests.simulation.faults import Rates
from tests.simulation.intruder import intruding
from tests.simulation.world import World


@dataclass(frozen=True, slots=True)
class Summary:
    """A seed's outcome, small enough to send between processes."""

    seed: int
    violations: tuple[str, ...]
    faults: Counter[str]
    history: tuple[str, ...]
    virtual_s: float


def play(
    seed: int,
    *,
    rates: Rates | None = None,
    variant: toy.Variant | None = None,
    devices: tuple[str, ...] = toy.DEVICES,
    reply_timeout_s: float = 10.0,
) -> Summary:
    """Run the seed's world, of the variant that comes round, unless `variant` says which."""
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    world = World(
        seed=seed,
        variant=variant or toy.VARIANTS[seed % len(toy.VARIANTS)],
        devices=devices,
        rates=rates,
        reply_timeout_s=reply_timeout_s,
    )
    with _quick(), intruding():
        try:
            outcome = run_virtually(world.run())
        except AssertionError as error:
            return Summary(seed, (f"{type(error).__name__}: {error}",), Counter(), (), 0.0)
    return Summary(
        seed,
        tuple(outcome.violations),
        outcome.faults.counts,
        tuple(outcome.faults.history),
        outcome.virtual_s,
    )


@contextmanager
def _quick() -> Iterator[None]:
    """Load each job's program once a process, and leave fsync out: the kernel does not crash here."""
    load: Callable[..., Job] = Job.from_parts

    def from_parts(manifest: bytes, parts: Mapping[str, bytes], **_: Any) -> Job:
        key = manifest, tuple(sorted(parts))
        if key not in _LOADED:
            _LOADED[key] = load(manifest, parts)
        return _LOADED[key]

    with mock.patch.object(Job, "from_parts", from_parts), mock.patch.object(os, "fsync"):
        yield


_LOADED: dict[tuple[bytes, tuple[str, ...]], Job] = {}
