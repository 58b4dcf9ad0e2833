"""A replica asks its shell for these actions, beside calls of the store and of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from server_worker.action import Action
from spliteasy.job import Job


@dataclass(frozen=True, slots=True)
class LoadJob(Action[Job | None]):
    """The program of a job version; None where the store has none."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Loaded(Action[None]):
    """Tell the world that a replica was taken over at `step`, after `replayed` steps of its log."""

    replica: str
    step: int
    replayed: int
    unlike: str | None = None
    """The machine that computed it, where that is unlike this one and the job tolerates it."""
