"""A session asks its shell for these actions, beside those of its replica, the store and the engine."""

from __future__ import annotations

from dataclasses import dataclass

from broker.protocol import messages as m
from server_worker.action import Action


@dataclass(frozen=True, slots=True)
class Send(Action[None]):
    """Send a reply to where the device listens now."""

    reply: m.Reply | m.Receipt


@dataclass(frozen=True, slots=True)
class Committed(Action[None]):
    """Tell the world that a step was committed (metrics, durability clock)."""

    session: str
    step: int
    loss: float | None = None
    """The loss, where the worker has computed it, or the device may and did report it."""
