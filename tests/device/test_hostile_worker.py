"""A worker's answers make a device send: never at will, and never more than a metered link may."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from broker.protocol import messages as m
from device_agent.link.metered import Metered
from device_agent.link.repeats import FREE, MOST_ANEW_S, MOST_S, Repeats
from device_agent.policy.data_budget import Allowance
from spliteasy.errors import LinkError
from tests.attack.hostile_worker import ANSWERS, Answer, storm

ATTEMPT = m.AttemptRef(number=1, nonce="a" * 16)
SECONDS = 20.0


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.__name__)
def test_a_storm_of_answers_makes_few_requests(tmp_path: Path, answer: Answer) -> None:
    seen = storm(tmp_path, answer, seconds=SECONDS)
    assert seen.answers > 500, "it was a storm"
    assert sum(seen.sent.values()) < 3 * SECONDS, seen.sent
    assert seen.sent["FORWARD"] <= FREE + SECONDS / 2, seen.sent
    assert seen.sent["OPEN"] <= FREE + 8, seen.sent
    assert seen.told < 100


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.__name__)
def test_a_storm_of_answers_stays_within_the_allowance(tmp_path: Path, answer: Answer) -> None:
    metered = 40_000
    seen = storm(tmp_path, answer, seconds=SECONDS, metered=metered)
    assert seen.sent["FORWARD"] > 0
    assert seen.nbytes <= metered + 2 * 1024, "two frames may be on their way when it disconnects"


def ask(about: str) -> m.Ask:
    return m.Ask(
        session="toy.phone-1", attempt=ATTEMPT, step=1, about=about, about_kind="FORWARD", forward=about
    )


def test_requests_are_told_apart_and_what_is_new_goes_at_once() -> None:
    now = [0.0]
    repeats = Repeats(lambda: now[0])
    first, second = "1" * 16, "2" * 16
    assert [repeats.wait_s(ask(first)) for _ in range(FREE)] == [0.0] * FREE
    waits = [repeats.wait_s(ask(first)) for _ in range(4)]
    assert waits == sorted(waits)
    assert waits[0] > 0
    assert repeats.wait_s(ask(second)) == 0
    repeats.connected()
    assert repeats.wait_s(ask(first)) == 0


def test_attempts_count_on_over_connections_and_are_forgiven_with_time() -> None:
    now = [0.0]
    repeats = Repeats(lambda: now[0])

    def begin() -> float:
        repeats.connected()
        digest = "0" * 64
        return repeats.wait_s(m.Open(session="toy.phone-1", attempt=ATTEMPT, digest=digest, held=(0,)))

    for _ in range(50):
        now[0] += begin()
    assert begin() > 1
    now[0] += 100 * MOST_ANEW_S
    assert begin() == 0


def test_a_request_may_be_sent_for_hours() -> None:
    """A device that waits for the end of a round asks again and again; the delay neither grows nor breaks."""
    now = [0.0]
    repeats = Repeats(lambda: now[0])
    for _ in range(5000):
        now[0] += repeats.wait_s(ask("1" * 16))
    assert repeats.wait_s(ask("1" * 16)) == MOST_S


def test_nothing_leaves_that_the_day_has_no_room_for() -> None:
    day = [date(2026, 1, 5)]
    allowance = Allowance(1000, today=lambda: day[0])
    metered = Metered(allowance, failed=pytest.fail, tell=lambda _: None)
    metered.sending(600)
    with pytest.raises(LinkError, match=r"disconnected: 600 B of today's 1\.0 kB"):
        metered.sending(401)
    assert allowance.used == 600, "it was not sent"
    metered.received(400)
    with pytest.raises(LinkError):
        metered.received(1)
    day[0] = date(2026, 1, 6)
    metered.sending(1000)
