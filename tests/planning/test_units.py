"""Rates, durations and sizes."""

from __future__ import annotations

import pytest

from spliteasy.errors import JobError
from spliteasy.runtime.units import parse_duration, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "rate"),
    [("8bit", 1), ("20mbit", 2.5e6), ("1Gbit", 1.25e8), ("2.5 mb/s", 2.5e6), (".5kbit", 62.5)],
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize(("text", "seconds"), [("50ms", 0.05), ("0.2s", 0.2), ("0ms", 0), ("7us", 7e-6)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "size"), [("512mb", 512_000_000), ("1gib", 1 << 30), ("12b", 12)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("20", "--uplink '20' has no unit"),
        ("20ms", "--uplink '20ms' has no unit that is known (ms)"),
        ("fast", "--uplink 'fast' is not a number and a unit"),
        ("-5mbit", "is not a number and a unit"),
        ("0mbit", "must be above 0"),
    ],
)
def test_a_wrong_rate_is_told_with_what_would_do(text: str, told: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_rate(text, "--uplink")
    assert told in str(caught.value)
    if "0mbit" not in text:
        assert "20mbit" in str(caught.value)
