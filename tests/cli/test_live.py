"""`status --watch` says what changed from one look to another."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from broker import Depth
from broker.transport.topology import DEFAULT_SHARDS, shard_of
from server_worker.store import Attempt, Owner, SessionMeta, WorkerInfo
from spliteasy.errors import LinkError, LinkRefused, StoreUnavailable
from spliteasy_cli.watch.changes import Tracker, changes
from spliteasy_cli.watch.cluster import ClusterSnapshot
from spliteasy_cli.watch.live_table import screen, watch
from tests.cli.conftest import Ran

NAME = "digits.phone-1"
META = SessionMeta(
    session=NAME,
    job_digest="d" * 64,
    attempt=Attempt(number=1, nonce="a" * 16),
    resume_step=0,
    owner=Owner(fence=1, nonce="w" * 16),
    committed=10,
    snapshots=(0,),
    oldest_checkpoint=0,
    environment="torch",
    log_bytes=2_000_000,
    closed=False,
    updated_at=1000.0,
)
WORKER = WorkerInfo(
    worker="w-1",
    started_at=900.0,
    sessions=1,
    shards=(shard_of(NAME, DEFAULT_SHARDS),),
    steps=10,
    host="h",
    pid=7,
    state="serving",
)
NO_DEPTHS = [Depth(messages=0, consumers=1)] * DEFAULT_SHARDS


def picture(
    *sessions: SessionMeta, workers: Iterable[WorkerInfo] = (WORKER,), dead: int = 0, **more: Any
) -> ClusterSnapshot:
    return ClusterSnapshot(
        jobs={},
        sessions=sessions,
        session_count=more.pop("session_count", len(sessions)),
        by_job={},
        workers=tuple(workers),
        front=Depth(messages=2, consumers=1),
        shards=NO_DEPTHS,
        dead=Depth(messages=dead, consumers=0),
        **more,
    )


def test_a_session_that_left_the_page_is_not_told_as_forgotten() -> None:
    """More sessions change than a look is at: one that changed earlier gives way."""
    before = picture(
        replace(META, session="digits.phone-1"), replace(META, session="digits.phone-2"), session_count=9
    )
    after = picture(replace(META, session="digits.phone-3"), session_count=9)
    assert lines(before, after) == []
    assert lines(before, replace(after, forgotten=["digits.phone-2"])) == ["digits.phone-2: forgotten"]


def lines(before: ClusterSnapshot, after: ClusterSnapshot) -> list[str]:
    return [news.line for news in changes(before, after)]


def shown(tracker: Tracker) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(screen(tracker, {NAME: 0.12345}.get))
    out = console.file
    assert isinstance(out, io.StringIO)
    return out.getvalue()


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (replace(META, committed=11), []),
        (
            replace(META, attempt=Attempt(number=2, nonce="b" * 16), resume_step=8, committed=8),
            [f"{NAME}: resumed after step 8 (attempt 2)"],
        ),
        (replace(META, committed=7), [f"{NAME}: went back from step 10 to 7"]),
        (
            replace(META, owner=Owner(fence=2, nonce="v" * 16)),
            [f"{NAME}: taken over by another worker after step 10"],
        ),
        (replace(META, closed=True), [f"{NAME}: finished at step 10"]),
        (replace(META, paused=True), [f"{NAME}: paused by the operator"]),
        (replace(META, session="digits.phone-2"), [f"{NAME}: forgotten", "digits.phone-2: began at step 10"]),
    ],
)
def test_what_happens_to_a_session_is_told(after: SessionMeta, told: list[str]) -> None:
    assert lines(picture(META), picture(after)) == told


def test_workers_that_come_drain_and_go_are_told_and_dead_letters_too() -> None:
    second = replace(WORKER, worker="w-2")
    assert lines(picture(), picture(workers=(WORKER, second))) == ["worker w-2: joined"]
    assert lines(picture(workers=(second,)), picture(workers=())) == ["worker w-2: gone"]
    draining = replace(WORKER, state="draining")
    assert lines(picture(), picture(workers=(draining,))) == ["worker w-1: draining"]
    assert lines(picture(dead=1), picture(dead=4)) == ["3 more in the dead queue"]
    assert lines(picture(dead=4), picture(dead=0)) == []


def test_the_rate_is_of_the_last_seconds_and_begins_anew_after_going_back() -> None:
    tracker = Tracker()
    for now, step in ((1000.0, 0), (1001.0, 100), (1020.0, 110), (1021.0, 112)):
        tracker.see(picture(replace(META, committed=step)), now)
    assert tracker.rate(NAME) == pytest.approx(12 / 20)
    tracker.see(picture(replace(META, committed=3)), 1022.0)
    assert tracker.rate(NAME) == 0.0
    assert tracker.rate("nobody.here") == 0.0


@pytest.mark.parametrize(
    ("meta", "now", "link"),
    [
        (META, 1009.0, "training"),
        (META, 1100.0, "silent for 2 min"),
        (replace(META, closed=True), 1100.0, "finished"),
        (replace(META, paused=True), 1100.0, "paused by the operator"),
    ],
)
def test_the_link_is_as_the_store_knows_it(meta: SessionMeta, now: float, link: str) -> None:
    tracker = Tracker()
    tracker.see(picture(meta), now)
    assert tracker.link(meta) == link
    assert link in shown(tracker)


def test_a_silence_is_measured_by_what_is_usual_and_its_end_is_told() -> None:
    tracker = Tracker()

    def commit(step: int, at: float) -> list[str]:
        return [news.line for news in tracker.see(picture(replace(META, committed=step, updated_at=at)), at)]

    for number, at in ((11, 1001.0), (12, 1002.0), (13, 1003.0)):
        commit(number, at)
    assert commit(14, 1015.0) == [f"{NAME}: trains again after 12 s of silence"]
    assert tracker.last_faults[NAME] == (1015.0, "trains again after 12 s of silence")
    assert "trains again after 12 s" in shown(tracker)
    slow = Tracker()
    for number, at in ((11, 2000.0), (12, 2030.0), (13, 2060.0), (14, 2090.0)):
        assert all(
            "silence" not in news.text
            for news in slow.see(picture(replace(META, committed=number, updated_at=at)), at)
        )
    assert slow.link(replace(META, updated_at=2030.0)) == "training"


def test_the_screen_has_sessions_their_worker_and_what_happened() -> None:
    tracker = Tracker()
    tracker.see(picture(META), 1000.0)
    tracker.see(picture(replace(META, committed=12), workers=(WORKER, replace(WORKER, worker="w-2"))), 1001.0)
    text = shown(tracker)
    assert "1 sessions, 2.0 steps/s, 2 workers, 2 frames waiting, 0 dead" in text
    row = next(line for line in text.splitlines() if line.startswith(NAME))
    assert row.split()[:5] == [NAME, "12", "2.0", "0.1235", "training"]
    assert "w-1" in row
    assert "2.0 MB" in row
    assert "worker w-2: joined" in text


async def test_a_fault_is_told_once_and_so_is_its_end() -> None:
    stop, moments = asyncio.Event(), iter(range(1000, 1100))
    looks = iter((picture(META), LinkError("broker gone"), StoreUnavailable("store gone"), picture(META)))

    async def look() -> ClusterSnapshot:
        outcome = next(looks, None)
        if outcome is None:
            stop.set()
            return picture(META)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    out = io.StringIO()
    await watch(
        look, console=Console(file=out, width=100), stop=stop, interval_s=0, clock=lambda: next(moments)
    )
    told = [line.split("  ", 1)[1] for line in out.getvalue().splitlines()[1:]]
    assert told == ["watching: 1 sessions, 1 workers", "broker gone", "broker and store answer again"]


async def test_on_a_terminal_the_view_is_drawn_and_a_refused_account_ends_it() -> None:
    looks = iter((picture(META), LinkRefused("wrong password")))

    async def look() -> ClusterSnapshot:
        outcome = next(looks)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True)
    with pytest.raises(LinkRefused):
        await watch(look, console=console, stop=asyncio.Event(), interval_s=0, clock=lambda: 1000.0)
    assert NAME in out.getvalue()


def test_watch_is_for_people(spliteasy: Callable[..., Ran]) -> None:
    assert "--json and --watch" in spliteasy("status", "--json", "--watch").error
