"""The embedded store: one SQLite file, for a single machine and for simulations.

A session's record is one row, and one statement replaces it if it still has the version that was decided on;
what the new record reaches and what it no longer reaches follow in the same transaction. Requests that no
commit has named yet wait in memory, so a commit is one durable write; a process that dies takes them along,
as it may.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from server_worker.store import rules
from server_worker.store.base import (
    DELIVERIES_TTL_S,
    PUT_TTL_S,
    UNREAD,
    Attempt,
    Blob,
    CommitOutcome,
    LogEntry,
    Owner,
    SessionMeta,
    StoredJob,
    WantedParts,
    WorkerInfo,
    all_parts,
)
from server_worker.store.records import decode_worker, encode_worker, pieces
from server_worker.store.sessions import Change, Moved, Sessions, Versioned, Written
from server_worker.store.sqlite.file import Beside, Database, Work
from server_worker.store.sqlite.fleets import SqliteFleets
from server_worker.store.sqlite.grouped_calls import GroupedCalls
from server_worker.store.staging import StagedRequests
from spliteasy.errors import StoreUnavailable

_T = TypeVar("_T")


class SqliteStore(Sessions[Beside, bytes]):
    """The store on a SQLite file (`path`), or in memory (`path` None).

    Calls run in order in a thread of the store's own; `inline` runs them in the caller instead, without
    giving way to other tasks, so that a simulation stays deterministic. A call that is cancelled still
    takes place. Two processes may share the file. `clock` gives Unix time in seconds. A file loses nothing
    once a call has returned; `loss_window_s` is for a simulation that goes back to an earlier image.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        inline: bool = False,
        clock: Callable[[], float] | None = None,
        put_ttl_s: float = PUT_TTL_S,
        loss_window_s: float | None = None,
    ) -> None:
        super().__init__(put_ttl_s=put_ttl_s, ticks=clock or time.monotonic)
        self.loss_window_s: float = (0.0 if path else math.inf) if loss_window_s is None else loss_window_s
        self._clock = clock or time.time
        self._put_ttl_s, self._ticks = put_ttl_s, clock or time.monotonic
        self._executor = None if inline else ThreadPoolExecutor(1, thread_name_prefix="sqlite-store")
        self._closed = False
        self._database = self._submit(lambda: Database(path))
        self._calls = None if self._executor is None else GroupedCalls(self._database, self._executor)
        self.fleets = SqliteFleets(self._write, self._read)

    # simulation

    def image(self) -> bytes:
        """All that is durable now."""
        return self._submit(lambda: self._database.image())

    def restore(self, image: bytes) -> None:
        """Go back to an earlier `image`: a store that lost what came after it, and all waiting requests."""
        self._requests = StagedRequests(ttl_s=self._put_ttl_s, clock=self._ticks)
        self._submit(lambda: self._database.restore(image))

    async def now(self) -> float:
        return self._clock()

    @property
    def waiting_bytes(self) -> int:
        """Return the bytes of requests that wait in this process for their commits."""
        return self._requests.nbytes

    async def shards(self, first: int | None = None) -> int | None:
        def settled(db: sqlite3.Connection) -> int | None:
            if first is not None:
                db.execute("INSERT OR IGNORE INTO stack VALUES ('shards', ?)", (first,))
            row = db.execute("SELECT value FROM stack WHERE setting = 'shards'").fetchone()
            return None if row is None else int(row[0])

        return await (self._read(settled) if first is None else self._write(settled))

    async def queue_type(self, first: str | None = None) -> str | None:
        def settled(db: sqlite3.Connection) -> str | None:
            if first is not None:
                db.execute("INSERT OR IGNORE INTO stack VALUES ('queues', ?)", (first,))
            row = db.execute("SELECT value FROM stack WHERE setting = 'queues'").fetchone()
            return None if row is None else str(row[0])

        return await (self._read(settled) if first is None else self._write(settled))

    # jobs

    async def put_job(self, job: StoredJob) -> None:
        def put(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM jobs WHERE name = ? AND digest = ?", (job.name, job.digest))
            db.execute(
                "INSERT INTO jobs (name, digest, manifest) VALUES (?, ?, ?)",
                (job.name, job.digest, job.manifest),
            )
            db.execute("DELETE FROM parts WHERE name = ? AND digest = ?", (job.name, job.digest))
            db.executemany(
                "INSERT INTO parts (name, digest, part, body) VALUES (?, ?, ?, ?)",
                (
                    (job.name, job.digest, part, piece)
                    for part, body in job.parts.items()
                    for piece in pieces(body)
                ),
            )
            if job.signature is not None:
                db.execute(
                    "REPLACE INTO signatures (name, digest, signature) VALUES (?, ?, ?)",
                    (job.name, job.digest, job.signature),
                )

        await self._write(put)

    async def get_job(
        self, name: str, digest: str | None = None, *, wanted: WantedParts = all_parts
    ) -> StoredJob | None:
        def get(db: sqlite3.Connection) -> StoredJob | None:
            row = db.execute(
                "SELECT digest, manifest, signature FROM jobs LEFT JOIN signatures USING (name, digest)"
                " WHERE name = ? AND digest = coalesce(?, digest) ORDER BY submission DESC LIMIT 1",
                (name, digest),
            ).fetchone()
            if row is None:
                return None
            version = (name, row[0])
            there = db.execute("SELECT DISTINCT part FROM parts WHERE name = ? AND digest = ?", version)
            parts: dict[str, bytes] = {}
            for part in wanted([found for (found,) in there]):
                rows = db.execute(
                    "SELECT part, body FROM parts WHERE name = ? AND digest = ? AND part = ? ORDER BY rowid",
                    (*version, part),
                )
                parts |= _joined(rows)
            return StoredJob(name=name, digest=row[0], manifest=row[1], parts=parts, signature=row[2])

        return await self._read(get)

    async def job_versions(self) -> Mapping[str, Sequence[str]]:
        def versions(db: sqlite3.Connection) -> dict[str, list[str]]:
            found: dict[str, list[str]] = {}
            for name, digest in db.execute("SELECT name, digest FROM jobs ORDER BY name, submission DESC"):
                found.setdefault(name, []).append(digest)
            return found

        return await self._read(versions)

    # sessions

    async def _load(self, session: str) -> Versioned | None:
        return await self._read(lambda db: self._database.record(session))

    async def _store(self, change: Change[Beside]) -> Written | Moved:
        return await self._write(lambda db: self._database.change(change, now=self._clock()))

    async def put_request(
        self, session: str, *, attempt: Attempt, owner: Owner, step: int, index: int, body: Blob
    ) -> None:
        nbytes = memoryview(body).nbytes
        self._requests.check_room(
            session, step=step, attempt=attempt, owner=owner, index=index, nbytes=nbytes
        )
        self._requests.put(
            session, step=step, attempt=attempt, owner=owner, index=index, value=bytes(body), nbytes=nbytes
        )

    def _logged(
        self, session: str, step: int, gradient_digest: str, requests: Sequence[bytes | None]
    ) -> Beside:
        return lambda db: db.append_log(session, step, gradient_digest, requests)

    async def put_snapshot(
        self, session: str, *, attempt: Attempt, owner: Owner, step: int, tensors: Mapping[str, Blob]
    ) -> CommitOutcome:
        return await self._move(
            session,
            lambda meta: rules.snapshotted(meta, attempt=attempt, owner=owner, step=step),
            beside=lambda db: db.add_snapshot(session, step, tensors),
            reached=lambda before, after: step in after.stored and step not in before.stored,
        )

    async def read_snapshot(self, session: str, step: int) -> dict[str, bytes]:
        def read(db: sqlite3.Connection) -> dict[str, bytes]:
            found = self._database.record(session)
            if found is None or step not in found.meta.stored:
                raise KeyError(f"session {session} has no snapshot of step {step}")
            return _joined(
                db.execute(
                    "SELECT name, body FROM tensors WHERE session = ? AND step = ? ORDER BY rowid",
                    (session, step),
                )
            )

        return await self._read(read)

    async def read_log(self, session: str, *, after: int, upto: int) -> AsyncIterator[LogEntry]:
        for step in range(after + 1, upto + 1):
            yield await self._read(partial(self._log_entry, session, step))

    def _log_entry(self, session: str, step: int, db: sqlite3.Connection) -> LogEntry:
        return self._database.log_entry(session, step)

    async def add_losses(self, session: str, losses: Mapping[int, float]) -> None:
        await self._write(lambda db: self._database.add_losses(session, losses))

    async def losses(self, session: str) -> Mapping[int, float]:
        return await self._read(lambda db: self._database.losses(session))

    async def sessions(self) -> Sequence[SessionMeta]:
        return await self._read(lambda db: self._database.metas())

    async def session_count(self) -> int:
        return await self._read(lambda db: int(db.execute("SELECT count(*) FROM sessions").fetchone()[0]))

    async def session_counts(self, jobs: Sequence[str]) -> Mapping[str, int]:
        return await self._read(lambda db: self._database.counts(jobs))

    async def active_count(self, within_s: float) -> int:
        counted, since = "SELECT count(*) FROM sessions WHERE updated_at >= ?", self._clock() - within_s
        return await self._read(lambda db: int(db.execute(counted, (since,)).fetchone()[0]))

    async def sessions_after(self, count: int, after: str = "") -> Sequence[SessionMeta]:
        return await self._read(lambda db: self._database.after(after, count))

    async def sessions_named(self, names: Sequence[str]) -> Sequence[SessionMeta]:
        def read(db: sqlite3.Connection) -> list[SessionMeta]:
            return [found.meta for name in names if (found := self._database.record(name)) is not None]

        return await self._read(read)

    async def due_sessions(self, count: int, *, skip: int = 0) -> Sequence[SessionMeta]:
        return await self._read(lambda db: self._database.due(count, skip=skip, now=self._clock()))

    async def look_later(self, waits_s: Mapping[str, float]) -> None:
        def write(db: sqlite3.Connection) -> None:
            now = self._clock()
            db.executemany(
                "UPDATE due SET at = ? WHERE session = ?",
                [(now + wait_s, session) for session, wait_s in waits_s.items()],
            )

        await self._write(write)

    async def newest_sessions(self, count: int, *, skip: int = 0) -> Sequence[SessionMeta]:
        return await self._read(lambda db: self._database.newest(count, skip=skip))

    # requests that end their worker

    async def begin_delivery(self, session: str | None, request: str) -> int:
        def begin(db: sqlite3.Connection) -> int:
            if session is not None and self._database.record(session) is None:
                return 0
            now = self._clock()
            db.execute("DELETE FROM deliveries WHERE begun_at <= ?", (now - DELIVERIES_TTL_S,))
            (count,) = db.execute(
                "INSERT INTO deliveries VALUES (?, ?, 1, ?) ON CONFLICT (session, request)"
                " DO UPDATE SET count = count + 1, begun_at = excluded.begun_at RETURNING count",
                (session or UNREAD, request, now),
            ).fetchone()
            return int(count)

        return await self._write(begin)

    async def end_delivery(self, session: str | None, request: str) -> None:
        statement = "DELETE FROM deliveries WHERE session = ? AND request = ?"
        await self._write(lambda db: db.execute(statement, (session or UNREAD, request)))

    # devices

    async def allow(self, device: str, jobs: Sequence[str] | None) -> None:
        def write(db: sqlite3.Connection) -> None:
            if jobs is None:
                db.execute("DELETE FROM allowed WHERE device = ?", (device,))
            else:
                db.execute("REPLACE INTO allowed (device, jobs) VALUES (?, ?)", (device, " ".join(jobs)))

        await self._write(write)

    async def allowed(self, devices: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        def read(db: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
            found = {}
            for device in devices:
                row = db.execute("SELECT jobs FROM allowed WHERE device = ?", (device,)).fetchone()
                if row is not None:
                    found[device] = tuple(row[0].split())
            return found

        return await self._read(read)

    # workers

    async def heartbeat(self, info: WorkerInfo, *, ttl_s: float) -> None:
        def beat(db: sqlite3.Connection) -> None:
            now = self._clock()
            db.execute("DELETE FROM workers WHERE expires_at <= ?", (now,))
            db.execute(
                "REPLACE INTO workers (worker, info, expires_at) VALUES (?, ?, ?)",
                (info.worker, encode_worker(info), now + ttl_s),
            )

        await self._write(beat)

    async def leave(self, worker: str) -> None:
        await self._write(lambda db: db.execute("DELETE FROM workers WHERE worker = ?", (worker,)))

    async def workers(self) -> Sequence[WorkerInfo]:
        return await self._read(
            lambda db: [
                decode_worker(line)
                for (line,) in db.execute(
                    "SELECT info FROM workers WHERE expires_at > ? ORDER BY worker", (self._clock(),)
                )
            ]
        )

    async def close(self) -> None:
        """Let calls in flight finish, then close the file. Twice is harmless; other calls fail then."""
        if self._closed:
            return
        self._closed = True
        if self._executor is None:
            self._database.close()
        else:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._database.close)
            self._executor.shutdown(wait=False)

    # plumbing

    async def _write(self, work: Work[_T]) -> _T:
        self._check_open()
        if self._calls is None:
            return self._database.transaction(work)
        return await self._calls.run(work, writes=True)

    async def _read(self, work: Work[_T]) -> _T:
        self._check_open()
        if self._calls is None:
            return self._database.query(work)
        return await self._calls.run(work, writes=False)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _submit(self, work: Callable[[], _T]) -> _T:
        return work() if self._executor is None else self._executor.submit(work).result()


def _joined(rows: sqlite3.Cursor) -> dict[str, bytes]:
    """Values by name, from rows of (name, piece) in order."""
    found: dict[str, list[bytes]] = {}
    for name, piece in rows:
        found.setdefault(name, []).append(piece)
    return {name: b"".join(parts) for name, parts in found.items()}
