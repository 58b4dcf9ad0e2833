"""Requests that wait for their commit don't pile up."""

from __future__ import annotations

from server_worker.store import Owner
from server_worker.store.waiting import Waiting
from tests.store.steps import FIRST, SESSION

OWNER = Owner(fence=1, nonce="w1")


def test_what_no_commit_came_for_is_let_go() -> None:
    now = 0.0
    waiting: Waiting[bytes] = Waiting(ttl_s=10, clock=lambda: now)
    for step in range(1, 5):
        waiting.put(SESSION, step=step, attempt=FIRST, owner=OWNER, index=0, value=b"f%d" % step)
        now += 4
    assert waiting.get(SESSION, step=3, attempt=FIRST, owner=OWNER, count=2) == [b"f3", None]
    assert waiting.get(SESSION, step=1, attempt=FIRST, owner=OWNER, count=1) == [None]
    assert [step for _, step, _, _ in waiting._values] == [2, 3, 4]
    now += 100
    waiting.put(SESSION, step=9, attempt=FIRST, owner=OWNER, index=0, value=b"f9")
    assert [step for _, step, _, _ in waiting._values] == [9]
