"""The decisions of a fleet, without I/O: when a round ends, and which devices are drawn for the next.

The record is written by compare-and-set before anybody acts on it, so that it makes no difference which
worker decides, or how many do at once.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spliteasy.fleet.record import MOST_VOIDS, EndedRound, Member, RoundRecord
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
    resumed: bool = False,
    mean_before: str | None = None,
) -> RoundRecord | None:
    """Return the record that is due, or None where the round goes on.

    `may_expire`: whether the deadline counts, which it does not at once after an outage of the workers.
    `resumed`: a person lets a fleet go on that too many void rounds have paused.
    `mean_before` is the digest of the mean that the round began from.
    """
    if newest is None:
        return first_record(members, fleet, seed=seed, now=now)
    if newest.paused and not resumed:
        return None
    number = newest.number + 1
    handed = {
        device: member.handed
        for device, member in sorted(members.items())
        if device in newest.cohort and member.round == number and member.handed is not None
    }
    expired = may_expire and now - newest.closed_at >= fleet.deadline_s
    if len(handed) < len(newest.cohort) and not expired:
        return None
    weights = {device: fleet.weight_of(each.samples) for device, each in handed.items()}
    counting = sum(weight > 0 for weight in weights.values())
    enough = LEAST_SEALED if fleet.seals_sums and not fleet.shares_body else 1
    needed = least(fleet, len(newest.cohort))
    if fleet.shares_body:  # a quorum that is a number is one of a round's devices, not of a window's
        needed = min(needed, max(1, len(newest.cohort)))
    counts = len(handed) >= needed and counting >= enough
    there = {device: member for device, member in members.items() if member.fleet_key == newest.fleet_key}
    draw = _Draw(waiting(there, fleet, now=now), fleet, seed, members)
    record = RoundRecord(
        number=number,
        previous=newest.digest,
        participants=handed if counts else {},
        weights=weights if counts else {},
        base=number if counts else newest.base,
        drawn=newest.drawn_for_next,
        began=newest.opened,
        opened=number,
        cohort=(),
        there=len(draw.there),
        closed_at=now,
        mean_before=mean_before,
        steps=newest.steps,
        fleet_key=newest.fleet_key,
    )
    voids = newest.voids + 1 if record.void and newest.cohort else 0
    if voids >= MOST_VOIDS:
        paused = {"voids": voids, "ends_base": newest.ends_base}
        return record.model_copy(update=paused)
    record = record.model_copy(update={"voids": voids})
    if fleet.shares_body:
        record = _after_window(record, newest, draw)
    elif fleet.hands_over:
        taken = sum(each.last - each.first for each in record.participants.values())
        cohort = draw.next_in_turn(after=max(newest.cohort, default=""))
        record = record.model_copy(update={"cohort": cohort, "steps": newest.steps + taken})
    else:
        record = record.model_copy(update={"cohort": drawn(draw.there, fleet, seed=seed, number=number + 1)})
    if not newest.cohort and not record.cohort:
        return None  # all have ended: the next round begins when a device comes
    return record


@dataclass(frozen=True, slots=True)
class _Draw:
    """The devices that can be drawn now, and how."""

    there: list[str]
    fleet: FleetSpec
    seed: int
    members: Members

    def windows(self, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the devices of the first window of round `number`, and those of the later ones."""
        cohort = drawn(self.there, self.fleet, seed=self.seed, number=number)
        return self.split(sorted(cohort, key=_lot(self.seed, number)))

    def split(self, devices: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the devices of the next window, by name, and those of the later ones, in order."""
        order = self.by_arrival(devices)
        size = self.fleet.window or len(order)
        return tuple(sorted(order[:size])), tuple(order[size:])

    def next_in_turn(self, *, after: str) -> tuple[str, ...]:
        """Return the device whose turn it is, if there is one."""
        if self.fleet.order == "arrival":
            return tuple(self.by_arrival(self.there)[:1])
        return next_in_turn(self.there, after=after)

    def by_arrival(self, devices: Sequence[str]) -> list[str]:
        """Return the devices with those first that have waited longest, where the job says so."""
        if self.fleet.order == "fixed":
            return list(devices)
        return sorted(devices, key=lambda device: self.members[device].since)


def _after_window(record: RoundRecord, newest: RoundRecord, draw: _Draw) -> RoundRecord:
    """Return the record with what follows on a window of a shared body.

    Its devices go on with the next window until each has ended its round; then come those that were drawn for
    the round with them, as many at a time as a window has. After the last ones the round ends. A device that
    missed a window is out of the round, and so are the devices of a window that is void.
    """
    taken = record.participants
    ended = {} if newest.opened == newest.number else dict(newest.ended)
    ended |= {
        device: EndedRound(
            window=record.number, samples=each.round_samples, digest=each.digest, nonce=each.nonce
        )
        for device, each in taken.items()
        if each.whole
    }
    go_on = tuple(device for device, each in taken.items() if not each.whole)
    to_come = [device for device in newest.rest if device in draw.there]
    update: dict[str, Any] = {
        "steps": newest.steps + (not record.void),
        "ended": ended,
        "ends_base": newest.ends_base,
    }
    if go_on or to_come:
        now, later = (go_on, tuple(to_come)) if go_on else draw.split(to_come)
        update |= {"cohort": now, "rest": later, "opened": newest.opened}
        return record.model_copy(update=update)
    cohort, rest = draw.windows(record.number + 1)
    counting = sum(draw.fleet.weight_of(each.samples) > 0 for each in ended.values())
    enough = LEAST_SEALED if draw.fleet.seals_sums else 1
    averaged = draw.fleet.ends_leave and len(ended) >= least(draw.fleet, record.drawn) and counting >= enough
    if averaged:
        update["ends_base"] = record.number
    return record.model_copy(update=update | {"cohort": cohort, "rest": rest})


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
    first = {device: members[device] for device in alike}
    return beginning(first, fleet, seed=seed, now=now, fleet_key=key)


def beginning(
    members: Members, fleet: FleetSpec, *, seed: int, now: float, fleet_key: str | None
) -> RoundRecord:
    """Return record 0 of a fleet whose first round is of these devices, or of those drawn from them."""
    rest: tuple[str, ...] = ()
    devices = sorted(members)
    draw = _Draw(devices, fleet, seed, members)
    if fleet.hands_over:
        cohort = draw.next_in_turn(after="")
    elif fleet.shares_body:
        cohort, rest = draw.windows(1)
    else:
        cohort = drawn(devices, fleet, seed=seed, number=1)
    return RoundRecord(
        number=0,
        previous="",
        participants={},
        weights={},
        base=0,
        cohort=cohort,
        rest=rest,
        there=len(devices),
        closed_at=now,
        fleet_key=fleet_key,
    )


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
    lots = sorted(devices, key=_lot(seed, number))
    return tuple(sorted(lots[: fleet.devices_per_round]))


def _lot(seed: int, number: int) -> Callable[[str], bytes]:
    return lambda device: hashlib.sha256(f"{seed}:{number}:{device}".encode()).digest()
