"""Some errors end a process, and the others are waited out, by a clock of the test's own."""

from __future__ import annotations

import asyncio

import pytest

from broker.transport.patience import Patience, tried_for_a_while
from spliteasy.errors import (
    AccountGone,
    LinkDeferred,
    LinkError,
    LinkRefused,
    SplitEasyError,
    StoreDeferred,
    StoreUnavailable,
    UserError,
)

AWAY, NOT_NOW, NO = LinkError("away"), LinkDeferred("not now"), LinkRefused("no")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lasts(patience: Patience, clock: Clock, error: SplitEasyError) -> float | None:
    """Return for how many more seconds the error is waited out; None: for a year at least."""
    began = clock.now
    for seconds in (0, 9, 10, 59, 60, 119, 120, 365 * 86400):
        clock.now = began + seconds
        try:
            patience.check(error)
        except SplitEasyError:
            return seconds
    return None


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (AWAY, 10),
        (StoreUnavailable("away"), 10),
        (NOT_NOW, 60),
        (StoreDeferred("loading"), 60),
        (NO, 0),
        (AccountGone("deleted"), 10),
        (UserError("the file is damaged"), 0),
    ],
)
def test_at_first_what_can_pass_is_tried_for_a_while(error: SplitEasyError, seconds: float) -> None:
    clock = Clock()
    assert lasts(Patience(clock=clock), clock, error) == seconds


@pytest.mark.parametrize("error", [AWAY, NOT_NOW, NO, UserError("the file is damaged")])
@pytest.mark.parametrize("limit_s", [None, 120])
def test_once_connected_everything_is_waited_out(error: SplitEasyError, limit_s: float | None) -> None:
    clock = Clock()
    patience = Patience(limit_s=limit_s, clock=clock)
    patience.connected()
    clock.now = 5000.0
    patience.lost(AWAY)
    assert lasts(patience, clock, error) == limit_s


def test_an_account_that_was_deleted_under_a_connection_is_gone_once_it_is_refused() -> None:
    clock = Clock()
    patience = Patience(clock=clock)
    patience.connected()
    patience.lost(AccountGone("deleted"))
    patience.check(AWAY)  # the broker restarts as well
    with pytest.raises(LinkRefused):
        patience.check(NO)
    patience.connected()  # it was made again
    patience.lost(AWAY)
    patience.check(NO)


def test_connections_that_never_worked_do_not_make_an_outage_shorter() -> None:
    clock = Clock()
    patience = Patience(limit_s=100, clock=clock)
    patience.connected()
    patience.lost(AWAY)
    for clock.now in (30, 60, 90):
        patience.lost(AWAY)  # connected, and refused before it could be used
        patience.check(NO)
    clock.now = 100
    with pytest.raises(LinkRefused):
        patience.check(NO)


async def test_a_command_asks_again_and_tells_each_reason_once() -> None:
    answers = iter([NOT_NOW, NOT_NOW, StoreDeferred("loading"), "yes"])

    async def attempt() -> str:
        answer = next(answers)
        if isinstance(answer, str):
            return answer
        raise answer

    told: list[str] = []
    async with asyncio.timeout(20):
        assert await tried_for_a_while(attempt, tell=told.append) == "yes"
    assert told == ["not now; trying again", "loading; trying again"]


@pytest.mark.parametrize("error", [AWAY, NO, UserError("no such thing")])
async def test_a_command_says_at_once_what_a_person_has_to_see_to(error: SplitEasyError) -> None:
    async def attempt() -> None:
        raise error

    with pytest.raises(type(error)):
        await tried_for_a_while(attempt)
