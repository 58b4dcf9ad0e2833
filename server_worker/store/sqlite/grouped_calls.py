"""Calls on the SQLite file that wait together share one transaction, so that one sync makes all durable."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from server_worker.store.sqlite.file import Database, Outcome, Work

MOST_TOGETHER = 64
"""So many calls share a transaction at most: what comes later must not wait for ever."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that waits for its turn, and what its caller awaits."""

    work: Work[Any]
    writes: bool
    done: asyncio.Future[Any]


class GroupedCalls:
    """Runs calls in the executor's one thread, in the order in which they came, and answers each when all
    that it wrote is durable. A call that is cancelled still takes place."""

    def __init__(self, database: Database, executor: Executor) -> None:
        self._database = database
        self._executor = executor
        self._lock = threading.Lock()
        """Guards the two below, which the thread changes too."""
        self._waiting: deque[_Call] = deque()
        self._running = False

    async def run(self, work: Work[_T], *, writes: bool) -> _T:
        """Return what `work` returns. Raises what it raises, and StoreError."""
        call = _Call(work, writes, asyncio.get_running_loop().create_future())
        with self._lock:
            self._waiting.append(call)
            begins, self._running = not self._running, True
        if begins:
            self._executor.submit(self._run_all)
        result: _T = await call.done
        return result

    def _run_all(self) -> None:
        """Run calls until none waits, in the executor's thread."""
        while calls := self._next():
            outcomes = self._database.together([(call.work, call.writes) for call in calls])
            for loop, answered in groupby(
                zip(calls, outcomes, strict=True), lambda pair: pair[0].done.get_loop()
            ):
                with suppress(RuntimeError):  # its loop has ended, and nobody waits
                    loop.call_soon_threadsafe(_answer, list(answered))

    def _next(self) -> list[_Call]:
        with self._lock:
            calls = [self._waiting.popleft() for _ in range(min(MOST_TOGETHER, len(self._waiting)))]
            self._running = bool(calls)
            return calls


def _answer(answered: list[tuple[_Call, Outcome]]) -> None:
    """Give each caller that still waits its result."""
    for call, outcome in answered:
        if call.done.done():
            continue
        if outcome.error is None:
            call.done.set_result(outcome.value)
        else:
            call.done.set_exception(outcome.error)
