"""Faults that a simulation may inject into the frames of the in-process broker, and the policy
without any."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from broker.transport.base import Delivery


class Fault(Enum):
    """A fault of a publish or a delivery."""

    NONE = auto()
    CUT = auto()
    """The connection is lost first: nothing arrives."""
    CUT_AFTER = auto()
    """A publish arrives, its confirm does not; of a delivery, the same as CUT."""
    DUPLICATE = auto()
    """It arrives twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    fault: Fault = Fault.NONE
    delay_s: float = 0.0
    """Others may overtake it meanwhile."""


FAULTLESS = Verdict()


class FaultPolicy(Protocol):
    """Asked about each publish and delivery. `principal` is that of the connection it would hit."""

    def on_publish(self, principal: str, target: str, frame: bytes) -> Verdict: ...

    def on_deliver(self, principal: str, queue: str, delivery: Delivery) -> Verdict: ...


class Faultless:
    """The policy of an embedded run."""

    def on_publish(self, principal: str, target: str, frame: bytes) -> Verdict:
        return FAULTLESS

    def on_deliver(self, principal: str, queue: str, delivery: Delivery) -> Verdict:
        return FAULTLESS
