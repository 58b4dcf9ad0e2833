"""Requests that wait for their commit don't pile up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server_worker.store import Owner
from server_worker.store import staging as module
from server_worker.store.staging import StagedRequests
from spliteasy.errors import StoreFull
from tests.store.steps import FIRST, SECOND, SESSION

OWNER = Owner(fence=1, nonce="w1")


def put(
    waiting: StagedRequests[bytes], step: int, *, session: str = SESSION, nbytes: int = 2, index: int = 0
) -> None:
    waiting.check_room(session, step=step, attempt=FIRST, owner=OWNER, index=index, nbytes=nbytes)
    waiting.put(
        session, step=step, attempt=FIRST, owner=OWNER, index=index, value=b"f%d" % step, nbytes=nbytes
    )


def test_what_no_commit_came_for_is_let_go() -> None:
    now = 0.0
    waiting: StagedRequests[bytes] = StagedRequests(ttl_s=10, clock=lambda: now)
    for step in range(1, 5):
        put(waiting, step)
        now += 4
    assert waiting.get(SESSION, step=3, attempt=FIRST, owner=OWNER, count=2) == [b"f3", None]
    assert waiting.get(SESSION, step=1, attempt=FIRST, owner=OWNER, count=1) == [None]
    now += 100
    put(waiting, 9, session="digits.phone-2")
    assert [session for session, _ in waiting._tries] == ["digits.phone-2"]


def test_what_is_kept_lives_on_and_what_has_run_out_does_not() -> None:
    now = 0.0
    waiting: StagedRequests[bytes] = StagedRequests(ttl_s=10, clock=lambda: now)
    put(waiting, 1)
    for _ in range(3):
        now += 9
        waiting.keep(SESSION, attempt=FIRST, owner=OWNER)
        waiting.keep(SESSION, attempt=SECOND, owner=OWNER)
        assert waiting.get(SESSION, step=1, attempt=FIRST, owner=OWNER, count=1) == [b"f1"]
    now += 10
    waiting.keep(SESSION, attempt=FIRST, owner=OWNER)
    assert waiting.get(SESSION, step=1, attempt=FIRST, owner=OWNER, count=1) == [None]


def test_the_next_attempt_takes_the_place_of_the_last() -> None:
    waiting: StagedRequests[bytes] = StagedRequests(ttl_s=10, clock=lambda: 0.0)
    put(waiting, 1)
    waiting.put(SESSION, step=1, attempt=SECOND, owner=OWNER, index=0, value=b"new", nbytes=2)
    assert waiting.get(SESSION, step=1, attempt=FIRST, owner=OWNER, count=1) == [None]
    assert waiting.get(SESSION, step=1, attempt=SECOND, owner=OWNER, count=1) == [b"new"]
    rival = replace(OWNER, nonce="w2")
    assert waiting.get(SESSION, step=1, attempt=SECOND, owner=rival, count=1) == [None]


def test_a_session_and_all_of_them_have_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_BYTES", 100)
    monkeypatch.setattr(module, "WAITING_BYTES_TOTAL", 150)
    waiting: StagedRequests[bytes] = StagedRequests(ttl_s=10, clock=lambda: 0.0)
    put(waiting, 1, nbytes=90)
    put(waiting, 1, nbytes=95)  # in its own place
    with pytest.raises(StoreFull, match=f"session {SESSION} has 95 bytes"):
        put(waiting, 1, nbytes=6, index=1)
    put(waiting, 1, nbytes=55, session="digits.phone-2")
    with pytest.raises(StoreFull, match="this worker's sessions have 150 bytes"):
        put(waiting, 1, nbytes=1, session="digits.phone-3")
    waiting.drop(SESSION, step=1, owner=OWNER)
    put(waiting, 1, nbytes=95, session="digits.phone-3")
