"""What happened: faults by kind, how long until training moved again, what was done twice."""

from __future__ import annotations

import asyncio
import statistics
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
    """Seconds from the end of a fault to the next step, by kind."""
    overtaken: int = 0
    """Recoveries that another fault came into: they are not measured."""
    steps: int = 0
    """Taken by devices, those taken again included."""
    steps_again: int = 0
    takeovers: int = 0
    """Times a worker loaded a session."""
    replayed: int = 0
    """Steps of logs that workers took again for it."""
    resumes: int = 0
    bytes_up: int = 0
    owners: dict[str, int] = field(default_factory=dict)
    """By session, the worker's slot that loaded it last."""
    newest: Counter[str] = field(default_factory=Counter)
    """By session, the newest step that its device has taken."""
    _waiting: dict[int, tuple[str, float]] = field(default_factory=dict)
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
            if slot in self._waiting or _now() - self._last_step_at.get(slot, -ACTIVE_S) < ACTIVE_S
        ]

    def disturbed(self, kind: str, slots: Iterable[int]) -> None:
        """From now on the fault is no hindrance any more: measure until each device takes a step."""
        for slot in slots:
            self.overtaken += slot in self._waiting
            self._waiting[slot] = (kind, _now())

    def waiting(self, slots: Iterable[int]) -> bool:
        """Whether any of the devices has not moved again."""
        return any(slot in self._waiting for slot in slots)

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
        if slot in self._waiting:
            kind, since = self._waiting.pop(slot)
            self.moved_after[kind].append(_now() - since)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least that share of all is not above."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]


def table(record: Record) -> str:
    """Faults by kind, and how soon training moved again."""
    rows = [f"{'fault':<42} {'times':>5} {'measured':>8} {'p50 s':>7} {'p95 s':>7} {'max s':>7}"]
    for kind, times in sorted(record.faults.items()):
        values = record.moved_after.get(kind, [])
        figures = (
            f"{statistics.median(values):7.2f} {percentile(values, 0.95):7.2f} {max(values):7.2f}"
            if values
            else f"{'-':>7} {'-':>7} {'-':>7}"
        )
        rows.append(f"{kind:<42} {times:>5} {len(values):>8} {figures}")
    return "\n".join(rows)


def _now() -> float:
    return asyncio.get_running_loop().time()
