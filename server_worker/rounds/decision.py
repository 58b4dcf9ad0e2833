"""The decisions of a fleet, without I/O: when a round ends, and which devices are drawn for the next.

The record is written by compare-and-set before anybody acts on it, so that it makes no difference which
worker decides, or how many do at once.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from spliteasy.fleet.record import Member, RoundRecord
from spliteasy.job.spec import LEAST_SEALED, FleetSpec

Members = Mapping[str, Member]


def next_record(
    newest: RoundRecord | None,
    members: Members,
    fleet: FleetSpec,
    *,
    seed: int,
    now: float,
    may_expire: bool,
    mean_before: str | None = None,
) -> RoundRecord | None:
    """Return the record that is due, or None where the round goes on.

    `may_expire`: whether the deadline counts, which it does not at once after an outage of the workers.
    `mean_before` is the digest of the mean that the round began from.
    """
    if newest is None:
        return first_record(members, fleet, seed=seed, now=now)
    number = newest.number + 1
    handed = {
        device: member.handed
        for device, member in sorted(members.items())
        if device in newest.cohort and member.round == number and member.handed is not None
    }
    expired = may_expire and now - newest.closed_at >= fleet.deadline_s
    if len(handed) < len(newest.cohort) and not expired:
        return None
    there = {device: member for device, member in members.items() if member.fleet_key == newest.fleet_key}
    can_train = waiting(there, fleet, now=now)
    if fleet.hands_over:
        cohort = next_in_turn(can_train, after=max(newest.cohort, default=""))
    else:
        cohort = drawn(can_train, fleet, seed=seed, number=number + 1)
    if not newest.cohort and not cohort:
        return None  # all have ended: the next round begins when a device comes
    by_samples = fleet.weights == "samples" and not fleet.hands_over
    weights = {
        device: each.samples if by_samples else int(each.samples > 0) for device, each in handed.items()
    }
    counting = sum(weight > 0 for weight in weights.values())
    enough = LEAST_SEALED if fleet.seals_sums else 1
    taken = sum(each.last - each.first for each in handed.values()) if fleet.hands_over else 0
    counts = len(handed) >= least(fleet, len(newest.cohort)) and counting >= enough
    return RoundRecord(
        number=number,
        previous=newest.digest,
        participants=handed if counts else {},
        weights=weights if counts else {},
        base=number if counts else newest.base,
        drawn=len(newest.cohort),
        cohort=cohort,
        closed_at=now,
        mean_before=mean_before,
        steps=newest.steps + (taken if counts else 0),
        fleet_key=newest.fleet_key,
    )


def first_record(members: Members, fleet: FleetSpec, *, seed: int, now: float) -> RoundRecord | None:
    """Record 0, once enough devices are there for a round; None before.

    It also settles which fleet key counts: the one that most of them have.
    """
    there = waiting(members, fleet, now=now)
    if not there or len(there) < wanted(fleet):
        return None
    keys = Counter(members[device].fleet_key for device in there)
    most = max(keys.values())
    key = next(members[device].fleet_key for device in there if keys[members[device].fleet_key] == most)
    alike = [device for device in there if members[device].fleet_key == key]
    return RoundRecord(
        number=0,
        previous="",
        participants={},
        weights={},
        base=0,
        cohort=first_cohort(alike, fleet, seed=seed),
        closed_at=now,
        fleet_key=key,
    )


def first_cohort(devices: Sequence[str], fleet: FleetSpec, *, seed: int) -> tuple[str, ...]:
    """Return the devices of the first round, of those that are there."""
    if fleet.hands_over:
        return next_in_turn(sorted(devices), after="")
    return drawn(devices, fleet, seed=seed, number=1)


def wanted(fleet: FleetSpec) -> int:
    """Return how many devices have to be there before the first round begins."""
    if fleet.devices_per_round is not None:
        return fleet.devices_per_round
    least_of_all = LEAST_SEALED if fleet.seals_sums else 1
    return max(least_of_all, fleet.quorum if isinstance(fleet.quorum, int) else 1)


def least(fleet: FleetSpec, cohort: int) -> int:
    """Return how many of a round's devices have to hand in for their mean to count."""
    if isinstance(fleet.quorum, int):
        return fleet.quorum
    return max(1, math.ceil(fleet.quorum * cohort))


def waiting(members: Members, fleet: FleetSpec, *, now: float) -> list[str]:
    """Return the devices that can be drawn for a round, by name: they were there lately and have steps to
    take.
    """
    horizon = now - fleet.deadline_s
    return [device for device, each in sorted(members.items()) if each.seen >= horizon and not each.done]


def next_in_turn(devices: Sequence[str], *, after: str) -> tuple[str, ...]:
    """Return the device whose turn it is, if there is one: that with the next name, or again the first."""
    later = [device for device in devices if device > after]
    return tuple((later or list(devices))[:1])


def drawn(devices: Iterable[str], fleet: FleetSpec, *, seed: int, number: int) -> tuple[str, ...]:
    """Return the devices of round `number`, by name: a pure function of the seed and of who is there."""

    def lot(device: str) -> bytes:
        return hashlib.sha256(f"{seed}:{number}:{device}".encode()).digest()

    return tuple(sorted(sorted(devices, key=lot)[: fleet.devices_per_round]))
