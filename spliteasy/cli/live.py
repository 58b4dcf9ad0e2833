"""`spliteasy status --watch`: sessions as they train, and what happens to them, from one look to the next.

The store knows steps, attempts and owners, not losses: those stay on the devices (`spliteasy agent` shows
them). What happened is told from the difference between two looks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from broker.topology import shard_of
from spliteasy.cli.status import Picture
from spliteasy.errors import LinkError, LinkRefused, StoreError
from spliteasy.readable import size, span

if TYPE_CHECKING:
    from server_worker.store import SessionMeta, WorkerInfo

EVENTS = 10
RATE_S = 10.0
"""Rates are means over so many seconds."""

SILENT_S = 10.0
"""A session without a commit for so long is called silent."""


@dataclass(slots=True)
class Tracker:
    """Follows pictures taken one after another; times are Unix seconds."""

    picture: Picture | None = None
    taken_at: float = 0.0
    fault: str | None = None
    """Why there was no picture at the last look."""
    events: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=EVENTS))
    _steps: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)

    def see(self, picture: Picture, now: float) -> list[str]:
        """Take in a new picture; returns what has happened since the last one, or what the first one has."""
        if self.picture is None:
            news = [f"watching: {len(picture.sessions)} sessions, {len(picture.workers)} workers"]
        else:
            news = changes(self.picture, picture)
        if self.fault is not None:
            news.insert(0, "broker and store answer again")
        self.picture, self.taken_at, self.fault = picture, now, None
        self._steps = {meta.session: self._window(meta, now) for meta in picture.sessions}
        self.events.extend((now, text) for text in news)
        return news

    def miss(self, why: str, now: float) -> list[str]:
        """There was no picture to be had; a fault that goes on is told once."""
        news = [] if self.fault is not None else [why]
        self.fault = why
        self.events.extend((now, text) for text in news)
        return news

    def rate(self, session: str) -> float:
        """Committed steps a second, lately."""
        window = self._steps.get(session)
        if not window or window[-1][0] == window[0][0]:
            return 0.0
        return (window[-1][1] - window[0][1]) / (window[-1][0] - window[0][0])

    def link(self, meta: SessionMeta) -> str:
        """What the store can know of the device: when it was last served."""
        if meta.closed:
            return "finished"
        if meta.paused:
            return "paused by the operator"
        idle_s = self.taken_at - meta.updated_at
        return "training" if idle_s < SILENT_S else f"silent for {span(idle_s)}"

    def _window(self, meta: SessionMeta, now: float) -> deque[tuple[float, int]]:
        window = self._steps.get(meta.session, deque[tuple[float, int]]())
        if window and meta.committed < window[-1][1]:
            window.clear()
        window.append((now, meta.committed))
        while len(window) > 2 and window[1][0] <= now - RATE_S:
            window.popleft()
        return window


def changes(before: Picture, after: Picture) -> list[str]:
    """What happened between two looks, a line each."""
    return [
        *_session_changes(before, after),
        *_worker_changes(
            {worker.worker: worker for worker in before.workers},
            {worker.worker: worker for worker in after.workers},
        ),
        *_queue_changes(before, after),
    ]


def _session_changes(before: Picture, after: Picture) -> list[str]:
    old = {meta.session: meta for meta in before.sessions}
    news = [f"{name}: forgotten" for name in old.keys() - {meta.session for meta in after.sessions}]
    for meta in after.sessions:
        was = old.get(meta.session)
        if was is None:
            news.append(f"{meta.session}: began at step {meta.committed}")
            continue
        if meta.attempt.number != was.attempt.number:
            news.append(
                f"{meta.session}: resumed after step {meta.resume_step} (attempt {meta.attempt.number})"
            )
        elif meta.committed < was.committed:
            news.append(f"{meta.session}: went back from step {was.committed} to {meta.committed}")
        elif meta.owner.nonce != was.owner.nonce:
            news.append(f"{meta.session}: taken over by another worker after step {meta.committed}")
        if meta.paused != was.paused:
            news.append(f"{meta.session}: {'paused' if meta.paused else 'let go on'} by the operator")
        if meta.closed and not was.closed:
            news.append(f"{meta.session}: finished at step {meta.committed}")
    return news


def _worker_changes(old: dict[str, WorkerInfo], new: dict[str, WorkerInfo]) -> list[str]:
    return [
        *(f"worker {name}: joined" for name in sorted(new.keys() - old.keys())),
        *(f"worker {name}: gone" for name in sorted(old.keys() - new.keys())),
        *(
            f"worker {name}: {new[name].state}"
            for name in sorted(old.keys() & new.keys())
            if new[name].state != old[name].state
        ),
    ]


def _queue_changes(before: Picture, after: Picture) -> list[str]:
    was, now = (picture.dead.messages if picture.dead else 0 for picture in (before, after))
    return [f"{now - was} more in the dead queue"] if now > was else []


async def watch(
    look: Callable[[], Awaitable[Picture]],
    *,
    console: Console,
    stop: asyncio.Event,
    interval_s: float,
    clock: Callable[[], float],
) -> None:
    """Look again and again until `stop` is set. Without a terminal it prints events only.

    A broker or store that does not answer is an event; LinkRefused is raised.
    """
    tracker = Tracker()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if live is None:
        console.print("what happens is told line by line; a terminal shows the sessions too", style="dim")
    else:
        live.start()
    try:
        while not stop.is_set():
            news = await _look_once(look, tracker, clock)
            if live is not None:
                live.update(screen(tracker), refresh=True)
            else:
                for text in news:
                    line = _event_line(tracker.events[-1][0], text)
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await stop.wait()
    finally:
        if live is not None:
            live.stop()


async def _look_once(
    look: Callable[[], Awaitable[Picture]], tracker: Tracker, clock: Callable[[], float]
) -> list[str]:
    try:
        picture = await look()
    except LinkRefused:
        raise
    except (LinkError, StoreError) as error:
        return tracker.miss(error.message, clock())
    return tracker.see(picture, clock())


def screen(tracker: Tracker) -> Group:
    """The whole view."""
    picture = tracker.picture
    parts: list[Table | Text] = []
    if picture is not None:
        waiting = sum(depth.messages for depth in (picture.front, *picture.shards) if depth is not None)
        dead = picture.dead.messages if picture.dead is not None else 0
        total = sum(tracker.rate(meta.session) for meta in picture.sessions)
        parts.append(
            Text(
                f"{len(picture.sessions)} sessions, {total:.1f} steps/s, {len(picture.workers)} workers, "
                f"{waiting} frames waiting, {dead} dead"
            )
        )
        parts.append(_sessions(tracker, picture))
    if tracker.fault is not None:
        parts.append(Text(tracker.fault, style="bold red"))
    parts.extend(Text(_event_line(moment, text), style="dim") for moment, text in tracker.events)
    return Group(*parts)


def _sessions(tracker: Tracker, picture: Picture) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in (("session", "left"), ("step", "right"), ("steps/s", "right")):
        grid.add_column(column, justify="right" if justify == "right" else "left")
    for column in ("device", "worker", "attempt", "log"):
        grid.add_column(column)
    for meta in picture.sessions:
        shard = shard_of(meta.session, len(picture.shards))
        workers = [worker.worker for worker in picture.workers if shard in worker.shards]
        grid.add_row(
            meta.session,
            str(meta.committed),
            f"{tracker.rate(meta.session):.1f}",
            tracker.link(meta),
            ", ".join(workers) or "–",
            str(meta.attempt.number),
            size(meta.log_bytes),
        )
    return grid


def _event_line(moment: float, text: str) -> str:
    return f"{datetime.fromtimestamp(moment):%H:%M:%S}  {text}"
