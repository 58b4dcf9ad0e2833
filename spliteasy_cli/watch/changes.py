"""Following a run from one look to the next: rates, who is silent, and what has happened meanwhile.

The store knows steps, attempts and owners; what happened is read from the difference between two looks.
`spliteasy status --watch` and `spliteasy dashboard` show the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from spliteasy.errors import LinkError, LinkRefused, StoreError, UserError
from spliteasy.runtime.readable import span
from spliteasy_cli.watch.cluster import ClusterSnapshot

if TYPE_CHECKING:
    from server_worker.store import SessionMeta, WorkerInfo

EVENTS = 10
RATE_S = 10.0
"""Rates are means over so many seconds."""

SILENT_S = 10.0
"""A session without a commit for so long is called silent, unless its steps usually take longer."""

SILENT_STEPS = 4.0
"""This many usual steps have to be missed too."""

FAULTS = frozenset({"takeover", "reconnect", "resume", "rewind"})
"""Changes that a person wants to see as a session's last fault."""


class News(NamedTuple):
    """Something that happened. `kind`: of FAULTS, or session, pause, worker or broker."""

    kind: str
    subject: str
    """The session or worker that it is about, or nothing where it is about all."""
    text: str

    @property
    def line(self) -> str:
        return f"{self.subject}: {self.text}" if self.subject else self.text


@dataclass(slots=True)
class Tracker:
    """Follows pictures taken one after another; times are Unix seconds."""

    picture: ClusterSnapshot | None = None
    taken_at: float = 0.0
    fault: str | None = None
    """Why there was no picture at the last look."""
    events: deque[tuple[float, News]] = field(default_factory=lambda: deque(maxlen=EVENTS))
    last_faults: dict[str, tuple[float, str]] = field(default_factory=dict)
    """The last fault of each session, with its time."""
    _steps: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)
    _usual_s: dict[str, float] = field(default_factory=dict)
    """The usual duration of a session's step, lately."""

    def see(self, picture: ClusterSnapshot, now: float) -> list[News]:
        """Take in a new picture; returns what has happened since the last one, or what the first one has."""
        if self.picture is None:
            text = f"watching: {picture.session_count} sessions, {len(picture.workers)} workers"
            news = [News("broker", "", text)]
        else:
            news = [*self._back(self.picture, picture), *changes(self.picture, picture)]
        if self.fault is not None:
            news.insert(0, News("broker", "", "broker and store answer again"))
        self.picture, self.taken_at, self.fault = picture, now, None
        self._steps = {meta.session: self._window(meta, now) for meta in picture.sessions}
        there = self._steps.keys()
        self._usual_s = {name: usual for name, usual in self._usual_s.items() if name in there}
        self.last_faults = {name: fault for name, fault in self.last_faults.items() if name in there}
        self._note(news, now)
        return news

    def miss(self, why: str, now: float) -> list[News]:
        """Note that the look failed; a fault that goes on is shown once."""
        news = [] if self.fault is not None else [News("broker", "", why)]
        self.fault = why
        self._note(news, now)
        return news

    def rate(self, session: str) -> float:
        """Committed steps a second, lately."""
        window = self._steps.get(session)
        if not window or window[-1][0] == window[0][0]:
            return 0.0
        return (window[-1][1] - window[0][1]) / (window[-1][0] - window[0][0])

    def link(self, meta: SessionMeta) -> str:
        """Say what the store can know of the device: when it was last served."""
        if meta.closed:
            return "finished"
        if meta.paused:
            return "paused by the operator"
        idle_s = self.taken_at - meta.updated_at
        return f"silent for {span(idle_s)}" if self._is_silent(meta.session, idle_s) else "training"

    def _is_silent(self, session: str, idle_s: float) -> bool:
        return idle_s >= max(SILENT_S, SILENT_STEPS * self._usual_s.get(session, 0.0))

    def _note(self, news: list[News], now: float) -> None:
        self.events.extend((now, each) for each in news)
        self.last_faults.update((each.subject, (now, each.text)) for each in news if each.kind in FAULTS)

    def _back(self, before: ClusterSnapshot, after: ClusterSnapshot) -> list[News]:
        """Sessions that commit again after a silence, without a new attempt: their link was down, or slow."""
        old = {meta.session: meta for meta in before.sessions}
        news = []
        for meta in after.sessions:
            was = old.get(meta.session)
            if was is None or was.attempt != meta.attempt or was.paused or meta.committed <= was.committed:
                continue
            idle_s = meta.updated_at - was.updated_at
            if self._is_silent(meta.session, idle_s) and meta.session in self._usual_s:
                news.append(News("reconnect", meta.session, f"trains again after {span(idle_s)} of silence"))
            else:
                step_s = idle_s / (meta.committed - was.committed)
                self._usual_s[meta.session] = (self._usual_s.get(meta.session, step_s) + step_s) / 2
        return news

    def _window(self, meta: SessionMeta, now: float) -> deque[tuple[float, int]]:
        window = self._steps.get(meta.session, deque[tuple[float, int]]())
        if window and meta.committed < window[-1][1]:
            window.clear()
        window.append((now, meta.committed))
        while len(window) > 2 and window[1][0] <= now - RATE_S:
            window.popleft()
        return window


def changes(before: ClusterSnapshot, after: ClusterSnapshot) -> list[News]:
    """Return what happened between two looks."""
    return [
        *_session_changes(before, after),
        *_worker_changes(
            {worker.worker: worker for worker in before.workers},
            {worker.worker: worker for worker in after.workers},
        ),
        *_queue_changes(before, after),
    ]


def _session_changes(before: ClusterSnapshot, after: ClusterSnapshot) -> list[News]:
    old = {meta.session: meta for meta in before.sessions}
    gone = old.keys() - {meta.session for meta in after.sessions}
    if not after.complete:  # the others have changed since, and took its place
        gone &= set(after.forgotten)
    news = [News("session", name, "forgotten") for name in sorted(gone)]
    for meta in after.sessions:
        was, name = old.get(meta.session), meta.session
        if was is None:
            if before.complete or (meta.attempt.number == 1 and not meta.committed):
                news.append(News("session", name, f"began at step {meta.committed}"))
            continue
        if meta.attempt.number != was.attempt.number:
            text = f"resumed after step {meta.resume_step} (attempt {meta.attempt.number})"
            kind = "rewind" if meta.resume_step < was.committed else "resume"
            news.append(News(kind, name, text))
        elif meta.committed < was.committed:
            news.append(News("rewind", name, f"went back from step {was.committed} to {meta.committed}"))
        elif meta.owner.nonce != was.owner.nonce:
            text = f"taken over by another worker after step {meta.committed}"
            news.append(News("takeover", name, text))
        if meta.paused != was.paused:
            text = f"{'paused' if meta.paused else 'let go on'} by the operator"
            news.append(News("pause", name, text))
        if meta.closed and not was.closed:
            news.append(News("session", name, f"finished at step {meta.committed}"))
    return news


def _worker_changes(old: dict[str, WorkerInfo], new: dict[str, WorkerInfo]) -> list[News]:
    return [
        *(News("worker", f"worker {name}", "joined") for name in sorted(new.keys() - old.keys())),
        *(News("worker", f"worker {name}", "gone") for name in sorted(old.keys() - new.keys())),
        *(
            News("worker", f"worker {name}", new[name].state)
            for name in sorted(old.keys() & new.keys())
            if new[name].state != old[name].state
        ),
    ]


def _queue_changes(before: ClusterSnapshot, after: ClusterSnapshot) -> list[News]:
    was, now = (picture.dead.messages if picture.dead else 0 for picture in (before, after))
    return [News("broker", "", f"{now - was} more in the dead queue")] if now > was else []


def serving(picture: ClusterSnapshot, session: str) -> list[str]:
    """The workers that say they hold the session's shard."""
    from broker.transport.topology import shard_of

    if not picture.shards:
        return []
    shard = shard_of(session, len(picture.shards))
    return [worker.worker for worker in picture.workers if shard in worker.shards]


async def look_once(
    look: Callable[[], Awaitable[ClusterSnapshot]],
    tracker: Tracker,
    clock: Callable[[], float],
    *,
    stays: bool = False,
) -> list[News]:
    """Look, and take in what there is. A broker or store that does not answer is news.

    Raises LinkRefused and UserError; where it `stays`, they are news too once there was a look.
    """
    try:
        picture = await look()
    except (LinkError, StoreError, UserError) as error:
        if isinstance(error, LinkRefused | UserError) and not (stays and tracker.picture is not None):
            raise
        return tracker.miss(error.message, clock())
    return tracker.see(picture, clock())
