"""A device that waits for a round: what it waits for, and when it asks again by itself.

A worker tells the devices that wait with it once they can go on (`watch.py`). What it tells may be lost, and
the worker may be: so each device also asks, within the limits here.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.protocol import messages as m
from server_worker.rounds.decision import wanted
from spliteasy.fleet.record import RoundRecord
from spliteasy.job.spec import FleetSpec

LEAST_WAIT_S, MOST_WAIT_S = 0.5, 5.0
"""A device asks again after a tenth of the time that the round has lasted, within these limits."""
SOON_S = 0.05
"""A device asks no sooner than this, where its worker knows the moment: a deadline, or a durable record."""
POLLS_PER_S = 50
"""Devices of a large fleet that are not in the round ask so often a second, all together."""
MOST_IDLE_S = 20.0
IDLE_SHARE = 4
"""Each of them asks so often within a deadline, though: who was not seen within one is not drawn."""

JOINING = "waiting for the round to begin"
HANDED_IN = "waiting for the other devices of the round"
LAST_TURN = "waiting for the devices that still have turns to take"
SETTLING = "waiting until the end of the round is durable"


@dataclass(frozen=True, slots=True)
class WaitingDevice:
    """A device at the end of its round, or before its first one."""

    fleet: str
    session: str
    device: str
    round: int
    """The round that it hands in for; 0: it comes new."""
    last: bool
    """It has taken its last step, and wants the mean only."""
    opened: int
    """The record that began the round that it is in."""
    spec: FleetSpec

    def why(self, newest: RoundRecord | None) -> str | None:
        """Return why the device can't go on after that record; None: it can."""
        if newest is None:
            return f"{JOINING}: {wanted(self.spec)} devices have to be there"
        if newest.paused and not self.last:
            return (
                f"the fleet is paused: too few devices handed in, so that {newest.voids} rounds in a row "
                f"were void; `spliteasy fleet {self.fleet.partition('@')[0]} --resume` lets it go on"
            )
        if newest.number < self.round:
            return HANDED_IN
        if self.last and self._others_go_on(newest):
            return LAST_TURN
        if not self.last and self.device not in newest.cohort:
            return JOINING
        return None

    def _others_go_on(self, newest: RoundRecord) -> bool:
        """Return whether a device that has ended waits for others: for their turns, or the round's end."""
        if self.spec.hands_over:
            return bool(newest.cohort)
        return self.spec.shares_body and newest.opened == self.opened

    def asks_after_s(self, newest: RoundRecord | None, now: float) -> float:
        """Return after how many seconds the device asks again, where nobody has told it to go on before."""
        if newest is None:
            return LEAST_WAIT_S
        if newest.paused and not self.last:
            return MOST_WAIT_S
        lasted_s, deadline_s = now - newest.closed_at, self.spec.deadline_s
        wait_s = min(MOST_WAIT_S, max(LEAST_WAIT_S, lasted_s / 10))
        if self.device not in newest.cohort:
            idle_s = min(MOST_IDLE_S, newest.there / POLLS_PER_S, deadline_s / IDLE_SHARE)
            return max(wait_s, idle_s)
        # The first question after the deadline closes the round.
        return max(SOON_S, min(wait_s, deadline_s - lasted_s)) if lasted_s < deadline_s else wait_s


def busy(request: m.Ready, reason: str, wait_s: float) -> m.Busy:
    """Return the reply that lets the device ask again after so many seconds."""
    return m.Busy(answers=request.request, retry_after_s=wait_s, reason=reason)
