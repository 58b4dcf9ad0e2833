"""Play one seed from beginning to end, in this process."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import structlog
import torch

from broker.transport.topology import QueueType
from server_worker.replica import kept_state, snapshots
from tests.simulation import toy
from tests.simulation.clock import run_virtually
from tests.simulation.faults import Rates
from tests.simulation.intruder import intruding
from tests.simulation.quick import SHARDS, quick
from tests.simulation.world import World

FLEET_EVERY = 9
"""Of so many seeds the last one is a fleet's."""


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
    devices: tuple[str, ...] | None = None,
    reply_timeout_s: float = 10.0,
    make: Callable[..., World] = World,
) -> Summary:
    """Run the seed's world: the variant and the devices that come round, unless told which."""
    variant = variant or drawn_variant(seed)
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    world = make(
        seed=seed,
        variant=variant,
        devices=devices or (toy.FLEET if variant.fleet else _devices(seed // len(toy.VARIANTS))),
        rates=rates,
        reply_timeout_s=reply_timeout_s,
        shards=SHARDS,
        queues=list(QueueType)[seed % 2],
    )
    large_steps = seed % 5 == 4  # beside a snapshot: the log is cut at nearly every one
    log_bytes = 0 if large_steps else snapshots.LOG_BYTES
    kinds = mock.patch.object(kept_state, "smaller", _drawn_kinds(seed, world.variant))
    with quick(), intruding(), mock.patch.object(snapshots, "LOG_BYTES", log_bytes), kinds:
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


def drawn_variant(seed: int) -> toy.Variant:
    """Return the variant that comes round: that of a device alone, or every so often a fleet's."""
    if seed % FLEET_EVERY == FLEET_EVERY - 1:
        return tuple(toy.FLEETS.values())[seed // FLEET_EVERY % len(toy.FLEETS)]
    return toy.VARIANTS[seed % len(toy.VARIANTS)]


def _drawn_kinds(seed: int, variant: toy.Variant) -> Callable[[int, int], bool]:
    """Draw for each step whether a worker keeps its state or its requests: one kind in some worlds, both in
    others. Where devices choose codecs as they go, the log's requests say what they chose.
    """
    rng = random.Random(f"kinds {seed}")
    share = 0.0 if variant.auto else rng.choice((0.0, 0.3, 0.7, 1.0))
    return lambda _state_bytes, _request_bytes: rng.random() < share


def _devices(round_: int) -> tuple[str, ...]:
    """Both in every fourth round, else one: sessions hardly meet, and so more is tried in a minute."""
    return toy.DEVICES if round_ % 4 == 0 else (toy.DEVICES[round_ % 2],)
