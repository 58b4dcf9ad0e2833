"""The record of a run: faults by kind, how long until training moved again, what was done twice."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

ACTIVE_S = 3.0
"""A device that took a step within so long is training: a fault disturbs it."""


@dataclass(slots=True)
class Record:
    """Filled while chaos runs. Devices are named by their slot."""

    faults: Counter[str] = field(default_factory=Counter)
    history: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    moved_after: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds from a fault, or the end of a lasting one, to the device's next step; by kind."""
    together: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """The same where other faults hit the device before that step: their time is in it."""
    steps: int = 0
    """The steps that devices took, those taken again included."""
    steps_again: int = 0
    takeovers: int = 0
    """Times a worker loaded a session."""
    replayed: int = 0
    """Steps of logs that workers took again for it."""
    resumes: int = 0
    bytes_up: int = 0
    owners: dict[str, int] = field(default_factory=dict)
    """The slot of the worker that loaded each session last."""
    newest: Counter[str] = field(default_factory=Counter)
    """The newest step that the device of each session has taken."""
    _waiting: defaultdict[int, list[tuple[str, float]]] = field(default_factory=lambda: defaultdict(list))
    _last_step_at: dict[int, float] = field(default_factory=dict)

    def note(self, text: str) -> None:
        self.history.append(f"{_now():9.2f}  {text}")

    def strike(self, kind: str, what: str = "") -> None:
        """A fault of that kind happens now."""
        self.faults[kind] += 1
        self.note(f"fault: {kind} {what}".rstrip())

    def active(self, slots: Iterable[int]) -> list[int]:
        """Those of the devices that are stepping now, or would be but for an earlier fault."""
        return [
            slot
            for slot in slots
            if self._waiting[slot] or _now() - self._last_step_at.get(slot, -ACTIVE_S) < ACTIVE_S
        ]

    def disturbed(self, kind: str, slots: Iterable[int]) -> None:
        """Measure from now on, when the fault is no hindrance any more, until each device takes a step."""
        for slot in slots:
            self._waiting[slot].append((kind, _now()))

    def waiting(self, slots: Iterable[int]) -> bool:
        """Return whether any of the devices has not moved again."""
        return any(self._waiting[slot] for slot in slots)

    def violate(self, text: str) -> None:
        self.violations.append(text)
        self.note(f"VIOLATION: {text}")

    # What the processes say -----------------------------------------------------------------------

    def agent_said(self, slot: int, session: str, line: dict[str, Any]) -> None:
        event = line.get("event", "")
        if event == "step taken":
            self._step(slot, session, line["step"])
        elif event.startswith("resumed after step"):
            self.resumes += 1
            self.note(f"{session}: {event}")
        elif event not in ("progress", "link lost"):
            self.note(f"{session}: {event}")

    def worker_said(self, slot: int, line: dict[str, Any]) -> None:
        if line.get("event") == "session loaded":
            self.takeovers += 1
            self.replayed += line["replayed"]
            self.owners[line["session"]] = slot
            self.note(
                f"worker {slot} loaded {line['session']} at step {line['step']}, replayed {line['replayed']}"
            )

    def _step(self, slot: int, session: str, step: int) -> None:
        self.steps += 1
        self.steps_again += step <= self.newest[session]
        self.newest[session] = max(step, self.newest[session])
        self._last_step_at[slot] = _now()
        waited = self._waiting.pop(slot, [])
        for kind, since in waited:
            (self.moved_after if len(waited) == 1 else self.together)[kind].append(_now() - since)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least that share of all is not above."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]


def table(record: Record) -> str:
    """Faults by kind, and how soon training moved again: alone, and with others before the next step."""
    head = f"{'fault':<42} {'times':>5} │ {'alone':>5} {'p50 s':>7} {'p95 s':>7} {'max s':>7}"
    rows = [f"{head} │ {'with others':>11} {'p50 s':>7} {'max s':>7}"]
    for kind, times in sorted(record.faults.items()):
        alone, together = record.moved_after.get(kind, []), record.together.get(kind, [])
        figures = [len(alone), *_seconds(alone, 0.5, 0.95, 1.0)]
        others = [len(together), *_seconds(together, 0.5, 1.0)]
        rows.append(
            f"{kind:<42} {times:>5} │ {figures[0]:>5} {figures[1]:>7} {figures[2]:>7} {figures[3]:>7}"
            f" │ {others[0]:>11} {others[1]:>7} {others[2]:>7}"
        )
    return "\n".join(rows)


def _seconds(values: list[float], *shares: float) -> list[str]:
    return [f"{percentile(values, share):.2f}" if values else "-" for share in shares]


def _now() -> float:
    return asyncio.get_running_loop().time()
