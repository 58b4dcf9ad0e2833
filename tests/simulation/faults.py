"""A seeded schedule of faults: what goes wrong, when, and how often of each kind."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from broker.transport.base import Delivery
from broker.transport.faults import FAULTLESS, Fault, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The rates of faults: per message, per store call, and mean seconds between the others."""

    cut: float = 0.004
    cut_after: float = 0.004
    duplicate: float = 0.01
    delay: float = 0.03
    store_before: float = 0.003
    store_after: float = 0.003
    zombie: float = 0.004
    worker_crash: float = 0.004
    agent_crash_s: float = 6.0
    worker_crash_s: float = 6.0
    worker_drain_s: float = 12.0
    rollback_s: float = 15.0
    pause_s: float = 20.0
    checkpoints_lost: float = 0.15
    """Share of agent crashes after which an older copy of the state folder is put back."""
    state_lost: float = 0.05
    """Share of agent crashes after which the state folder is gone."""
    no_memory: float = 0.003
    """Per computation of a worker, before it and again at its end."""


NEVER_S = 1e9
CALM = Rates(
    cut=0.0,
    cut_after=0.0,
    duplicate=0.0,
    delay=0.0,
    store_before=0.0,
    store_after=0.0,
    zombie=0.0,
    worker_crash=0.0,
    agent_crash_s=NEVER_S,
    worker_crash_s=NEVER_S,
    worker_drain_s=NEVER_S,
    rollback_s=NEVER_S,
    pause_s=NEVER_S,
    checkpoints_lost=0.0,
    state_lost=0.0,
    no_memory=0.0,
)
FREQUENT = Rates(
    cut=0.01,
    cut_after=0.01,
    zombie=0.05,
    agent_crash_s=3.0,
    worker_crash_s=4.0,
    rollback_s=8.0,
    checkpoints_lost=0.0,
    state_lost=0.0,
)


def drawn_rates(rng: random.Random) -> Rates:
    """Each seed has a weather of its own: some kinds of fault frequent, others absent."""
    usual = Rates()
    factors = (0.0, 0.5, 1.0, 4.0)
    return Rates(
        **{
            name: min(0.3, getattr(usual, name) * rng.choice(factors))
            if not name.endswith("_s")
            else getattr(usual, name) / max(0.02, rng.choice(factors))
            for name in Rates.__dataclass_fields__
        }
    )


@dataclass(slots=True)
class Faults:
    """Draws faults until `until_s` of virtual time, counts them, and writes the history down."""

    rng: random.Random
    rates: Rates
    counts: Counter[str] = field(default_factory=Counter)
    history: list[str] = field(default_factory=list)
    active: bool = True

    def strikes(self, probability: float, kind: str, what: str) -> bool:
        """Return whether the fault happens now."""
        if not self.active or self.rng.random() >= probability:
            return False
        self.note(kind, what)
        return True

    def note(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self.history.append(f"fault {kind}: {what}")

    def on_publish(self, principal: str, target: str, frame: bytes) -> Verdict:
        return self._verdict(f"publish of {principal} to {_without_nonce(target)}")

    def on_deliver(self, principal: str, queue: str, delivery: Delivery) -> Verdict:
        return self._verdict(f"delivery of {_without_nonce(queue)} to {principal}")

    def _verdict(self, what: str) -> Verdict:
        rates = self.rates
        if self.strikes(rates.cut, "cut", what):
            return Verdict(fault=Fault.CUT)
        if self.strikes(rates.cut_after, "cut after", what):
            return Verdict(fault=Fault.CUT_AFTER)
        if self.strikes(rates.duplicate, "duplicate", what):
            return Verdict(fault=Fault.DUPLICATE)
        if self.strikes(rates.delay, "delay", what):
            return Verdict(delay_s=self.rng.choice((0.01, 0.3, 3.0, 20.0)))
        return FAULTLESS


def _without_nonce(name: str) -> str:
    """A reply queue's name ends in random digits: histories are the same without them."""
    return name.rpartition(".")[0] if name.startswith("spliteasy.reply.") else name
