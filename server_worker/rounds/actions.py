"""A device's turn at the end of a round asks its shell for these, beside calls of store and engine."""

from __future__ import annotations

from dataclasses import dataclass

from server_worker.action import Action
from server_worker.rounds.waiting import WaitingDevice


@dataclass(frozen=True, slots=True)
class AwaitRound(Action[None]):
    """Wake the session once there is a record after number `known` that lets the device go on."""

    device: WaitingDevice
    known: int


@dataclass(frozen=True, slots=True)
class BeAlone(Action[None]):
    """Let no other session of this worker close a round of the fleet, or take its mean, until this turn ends.

    That saves work: what is decided twice, or taken twice, is the same.
    """

    fleet: str
