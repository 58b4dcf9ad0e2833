"""A budget of bytes a day that a device may send and receive, for a link that is paid by the byte.

What was used is written down ahead, a little at a time: after a crash some bytes too many count as used,
never too few.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from spliteasy.runtime.readable import size

MAX_DAYS = 31
"""Days that are remembered: a clock that was wrong for a while, and goes back, finds its day again."""

AHEAD = 100
"""A hundredth of the allowance is written down at a time."""


class _Used(BaseModel):
    """Bytes by day (ISO date), both ways."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    days: dict[str, NonNegativeInt] = {}


class Allowance:
    """Counts a device's traffic by days of its own clock, against a limit."""

    def __init__(
        self,
        limit_bytes: int,
        *,
        saved: bytes | None = None,
        save: Callable[[bytes], object] = lambda _: None,
        today: Callable[[], date] = date.today,
    ) -> None:
        """`saved`: what `save` was given last, by this agent or an earlier one; it is durable on return."""
        self.limit_bytes = limit_bytes
        self._save = save
        self._today = today
        self._days = _parsed(saved)
        self._written = dict(self._days)
        self._step_bytes = 0
        """The bytes that a step took lately: the next one does not begin where that is more than is left."""
        self._total = self._total_before = 0

    @property
    def day(self) -> str:
        """Return the day that counts now."""
        return self._today().isoformat()

    @property
    def used(self) -> int:
        """Bytes of today."""
        return self._days.get(self.day, 0)

    def count(self, nbytes: int) -> None:
        """Count bytes that are sent now, or have come. Raises as `save` does."""
        day = self.day
        self._total += nbytes
        self._days[day] = self._days.get(day, 0) + nbytes
        if self._days[day] > self._written.get(day, 0):
            self._write(day, self._days[day] + self.limit_bytes // AHEAD)

    def between_steps(self, *, after_one: bool) -> None:
        """Another step may begin; `after_one` has ended just now, and says what the next will need."""
        if after_one:
            self._step_bytes = self._total - self._total_before
        self._total_before = self._total

    def why_not(self) -> str | None:
        """Why no step may begin now, for a person; None: one may."""
        limit, used, step = self.limit_bytes, self.used, self._step_bytes
        if step > limit:
            return (
                f"a step takes {size(step)}, more than the {size(limit)} a day of --metered: "
                "start it again with a larger one"
            )
        if used + step <= limit and used < limit:
            return None
        needs = f", and a step takes {size(step)}" if used < limit else ""
        return (
            f"{size(used)} of today's {size(limit)} (--metered) are used{needs}; it goes on tomorrow, "
            "or started again with a larger --metered"
        )

    def close(self) -> None:
        """Write down what was really used."""
        day = self.day
        if self._written.get(day, 0) != self._days.get(day, 0):
            self._write(day, self._days.get(day, 0))

    def _write(self, day: str, used: int) -> None:
        self._written = dict(sorted({**self._days, day: used}.items())[-MAX_DAYS:])
        self._save(_Used(days=self._written).model_dump_json().encode())


def _parsed(saved: bytes | None) -> dict[str, int]:
    try:
        return dict(_Used.model_validate_json(saved).days) if saved is not None else {}
    except ValidationError:
        return {}  # as good as absent, as all files of a state folder
