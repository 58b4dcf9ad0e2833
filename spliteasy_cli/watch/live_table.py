"""`spliteasy status --watch`: sessions as they train, and what happens to them, on a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from spliteasy.runtime.readable import size
from spliteasy_cli.watch.changes import Tracker, look_once, serving
from spliteasy_cli.watch.cluster import ClusterSnapshot


def unknown_loss(session: str) -> float | None:
    """Return no loss, because losses stay on their devices."""
    return None


async def watch(
    look: Callable[[], Awaitable[ClusterSnapshot]],
    *,
    console: Console,
    stop: asyncio.Event,
    interval_s: float,
    clock: Callable[[], float],
    loss: Callable[[str], float | None] = unknown_loss,
) -> None:
    """Look again and again until `stop` is set. Without a terminal it prints events only.

    A broker or store that does not answer is an event; LinkRefused is raised. `loss`: of a session, where it
    is shared.
    """
    tracker = Tracker()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if live is None:
        console.print("what happens is shown line by line; a terminal shows the sessions too", style="dim")
    else:
        live.start()
    try:
        while not stop.is_set():
            news = await look_once(look, tracker, clock)
            if live is not None:
                live.update(screen(tracker, loss), refresh=True)
            else:
                for each in news:
                    line = _event_line(tracker.events[-1][0], each.line)
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await stop.wait()
    finally:
        if live is not None:
            live.stop()


def screen(tracker: Tracker, loss: Callable[[str], float | None] = unknown_loss) -> Group:
    """Return the whole view."""
    picture = tracker.picture
    parts: list[Table | Text] = []
    if picture is not None:
        waiting = sum(depth.messages for depth in (picture.front, *picture.shards) if depth is not None)
        dead = picture.dead.messages if picture.dead is not None else 0
        total = sum(tracker.rate(meta.session) for meta in picture.sessions)
        followed = "" if picture.complete else f" (shown: {len(picture.sessions)} that changed last)"
        parts.append(
            Text(
                f"{picture.session_count} sessions{followed}, {total:.1f} steps/s, "
                f"{len(picture.workers)} workers, {waiting} frames waiting, {dead} dead"
            )
        )
        parts.append(_sessions(tracker, picture, loss))
    if tracker.fault is not None:
        parts.append(Text(tracker.fault, style="bold red"))
    parts.extend(Text(_event_line(moment, news.line), style="dim") for moment, news in tracker.events)
    return Group(*parts)


def _sessions(tracker: Tracker, picture: ClusterSnapshot, loss: Callable[[str], float | None]) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("session")
    for column in ("step", "steps/s", "loss"):
        grid.add_column(column, justify="right")
    for column in ("device", "worker", "attempt", "log", "last fault"):
        grid.add_column(column)
    for meta in picture.sessions:
        known = loss(meta.session)
        _, fault = tracker.last_faults.get(meta.session, (0.0, "–"))
        grid.add_row(
            meta.session,
            f"{meta.committed} of {meta.total_steps}" if meta.total_steps else str(meta.committed),
            f"{tracker.rate(meta.session):.1f}",
            "–" if known is None else f"{known:.4g}",
            tracker.link(meta),
            ", ".join(serving(picture, meta.session)) or "–",
            str(meta.attempt.number),
            size(meta.log_bytes),
            fault,
        )
    return grid


def _event_line(moment: float, text: str) -> str:
    return f"{datetime.fromtimestamp(moment):%H:%M:%S}  {text}"
