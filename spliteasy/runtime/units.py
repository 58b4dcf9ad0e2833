"""Rates, durations and sizes as a person writes them: `20mbit`, `50ms`, `512mb`."""

from __future__ import annotations

import re

from spliteasy.errors import JobError

_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-z/]*)\s*", re.IGNORECASE)

RATES = {
    "bit": 1 / 8,
    "kbit": 1e3 / 8,
    "mbit": 1e6 / 8,
    "gbit": 1e9 / 8,
    "kb/s": 1e3,
    "mb/s": 1e6,
    "gb/s": 1e9,
}
"""Units of a rate, in bytes a second."""
DURATIONS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
SIZES = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def parse_rate(text: str, what: str = "rate") -> float:
    """`20mbit` (a second), `2.5mb/s`: in bytes a second. Raises JobError."""
    rate = _parse(text, RATES, what, "20mbit or 2.5mb/s")
    if rate <= 0:
        raise JobError(f"{what} {text!r} must be above 0")
    return rate


def parse_duration(text: str, what: str = "duration") -> float:
    """`50ms`, `0.2s`: in seconds. Raises JobError."""
    return _parse(text, DURATIONS, what, "50ms or 0.2s")


def parse_size(text: str, what: str = "size") -> int:
    """`512mb`, `1gib`: in bytes. Raises JobError."""
    return int(_parse(text, SIZES, what, "512mb or 1gib"))


def _parse(text: str, units: dict[str, float], what: str, such_as: str) -> float:
    match = _NUMBER.fullmatch(text)
    unit = match[2].lower() if match else ""
    if match is None or unit not in units:
        problem = f"has no unit that is known ({unit})" if unit else "has no unit"
        if match is None:
            problem = "is not a number and a unit"
        raise JobError(f"{what} {text[:40]!r} {problem}", hint=f"write it as {such_as}; {_known(units)}")
    return float(match[1]) * units[unit]


def _known(units: dict[str, float]) -> str:
    return f"units are {', '.join(units)}"
