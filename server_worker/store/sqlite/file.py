"""The SQLite file of the embedded store: its tables, rows as records, transactions, errors."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import structlog

from server_worker.store.base import Blob, LogEntry, SessionMeta
from server_worker.store.records import decode_session, encode_session, pieces
from server_worker.store.rules import thinned
from server_worker.store.sessions import Change, Moved, Versioned, Written
from server_worker.store.sqlite import fleets
from spliteasy.errors import StoreError, StoreFull, StoreUnavailable, UserError
from spliteasy.runtime.descriptors import LACK_HINT, lack_of_descriptors

log = structlog.get_logger(__name__)

FORMAT = 4
BUSY_TIMEOUT_S = 5.0
"""A write waits this long for another process that writes to the same file."""

WAL_PAGES = 16384
"""Pages in the write-ahead file before they are moved to the database: 64 MiB, some large steps."""

_SCHEMA = """
CREATE TABLE sessions (
    session TEXT PRIMARY KEY, version TEXT, record BLOB, log_bytes INTEGER, updated_at REAL
) WITHOUT ROWID;
CREATE INDEX sessions_by_change ON sessions (updated_at);
CREATE TABLE log (
    session TEXT, step INTEGER, gradient_digest TEXT, bytes INTEGER, PRIMARY KEY (session, step)
) WITHOUT ROWID;
CREATE TABLE requests (session TEXT, step INTEGER, position INTEGER, body BLOB);
CREATE INDEX requests_by_step ON requests (session, step, position);
CREATE TABLE tensors (session TEXT, step INTEGER, name TEXT, body BLOB);
CREATE INDEX tensors_by_step ON tensors (session, step);
CREATE TABLE jobs (
    submission INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, digest TEXT, manifest BLOB, UNIQUE (name, digest)
);
CREATE TABLE parts (name TEXT, digest TEXT, part TEXT, body BLOB);
CREATE INDEX parts_by_job ON parts (name, digest);
CREATE TABLE workers (worker TEXT PRIMARY KEY, info BLOB, expires_at REAL) WITHOUT ROWID;
CREATE TABLE losses (session TEXT, step INTEGER, loss REAL, PRIMARY KEY (session, step)) WITHOUT ROWID;
CREATE TABLE signatures (name TEXT, digest TEXT, signature TEXT, PRIMARY KEY (name, digest));
CREATE TABLE allowed (device TEXT PRIMARY KEY, jobs TEXT) WITHOUT ROWID;
CREATE TABLE deliveries (
    session TEXT, request TEXT, count INTEGER, begun_at REAL, PRIMARY KEY (session, request)
) WITHOUT ROWID;
CREATE TABLE stack (setting TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
"""

_DUE = (
    "CREATE TABLE IF NOT EXISTS due (session TEXT PRIMARY KEY, at REAL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS due_by_time ON due (at)",
    "INSERT OR IGNORE INTO due SELECT session, 0 FROM sessions"
    " WHERE (SELECT count(*) FROM due) < (SELECT count(*) FROM sessions)",
)
"""When retention looks at each session next. A file of an earlier version has no such table."""

_RECORD = "SELECT session, version, record, log_bytes, updated_at FROM sessions"

_T = TypeVar("_T")
Work = Callable[[sqlite3.Connection], _T]
Beside = Callable[["Database"], None]
"""Adds rows beside a session's record, within the transaction that changes it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a call, or what it raised."""

    value: Any = None
    error: Exception | None = None


class Database:
    """One connection, to be used by one thread. `path` None: in memory."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        with _errors(path):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        with _errors(self._path):
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
            self._connection.execute(f"PRAGMA journal_size_limit = {WAL_PAGES * 4096}")
        found = self.transaction(self._create)
        if found != FORMAT:
            raise UserError(
                f"the store {self._path} has format {found}, this version reads {FORMAT}",
                hint="name another file, or delete this one to start over",
            )

    def _create(self, db: sqlite3.Connection) -> int:
        """Create the tables in an empty file; the file's format then."""
        if db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            for statement in (_SCHEMA + fleets.TABLES).split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {FORMAT}")
        found = int(db.execute("PRAGMA user_version").fetchone()[0])
        for statement in _DUE if found == FORMAT else ():
            db.execute(statement)
        return found

    def close(self) -> None:
        self._connection.close()

    def together(self, calls: Sequence[tuple[Work[Any], bool]]) -> list[Outcome]:
        """Run calls in order, in one transaction where one of them writes; each sees what those before did.

        A call that raises is undone alone. Where the transaction itself fails each call runs in one of its
        own: so none of them must change anything but the file.
        """
        if len(calls) > 1 and any(writes for _, writes in calls):
            try:
                return self.transaction(lambda db: [self._undone_alone(db, work) for work, _ in calls])
            except StoreUnavailable as error:  # another process writes for too long, or the disk fails
                return [Outcome(error=error) for _ in calls]
            except StoreError as error:
                log.debug("calls of the store did not fit into one transaction", error=error.message)
        return [_outcome(self.transaction if writes else self.query, work) for work, writes in calls]

    def _undone_alone(self, db: sqlite3.Connection, work: Work[Any]) -> Outcome:
        db.execute("SAVEPOINT call")
        try:
            with _errors(self._path):
                value = work(db)
        except Exception as error:
            if not db.in_transaction:  # SQLite has undone all that was done together
                raise
            db.execute("ROLLBACK TO call")
            db.execute("RELEASE call")
            return Outcome(error=error)
        db.execute("RELEASE call")
        return Outcome(value)

    def transaction(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` in a transaction that is durable when this returns, and undone when it raises."""
        return self._within("BEGIN IMMEDIATE", work)

    def query(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` on one consistent view."""
        return self._within("BEGIN", work)

    def _within(self, begin: str, work: Callable[[sqlite3.Connection], _T]) -> _T:
        db = self._connection
        with _errors(self._path):
            db.execute(begin)
            try:
                result = work(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        return result

    def image(self) -> bytes:
        assert self._path is None, "only a store in memory has images"
        return self._connection.serialize()

    def restore(self, image: bytes) -> None:
        assert self._path is None, "only a store in memory has images"
        self._connection.deserialize(image)

    # rows, within a transaction

    def record(self, session: str) -> Versioned | None:
        row = self._connection.execute(f"{_RECORD} WHERE session = ?", (session,)).fetchone()
        return None if row is None else _versioned(*row)

    def metas(self) -> list[SessionMeta]:
        rows = self._connection.execute(f"{_RECORD} ORDER BY session")
        return [_versioned(*row).meta for row in rows]

    def counts(self, jobs: Sequence[str]) -> dict[str, int]:
        """Count the sessions of each job; a slash comes after the dot behind its name."""
        counted = "SELECT count(*) FROM sessions WHERE session >= ? || '.' AND session < ? || '/'"
        return {job: int(self._connection.execute(counted, (job, job)).fetchone()[0]) for job in jobs}

    def after(self, name: str, count: int) -> list[SessionMeta]:
        order = "WHERE session > ? ORDER BY session LIMIT ?"
        return [
            _versioned(*row).meta for row in self._connection.execute(f"{_RECORD} {order}", (name, count))
        ]

    def due(self, count: int, *, skip: int, now: float) -> list[SessionMeta]:
        names = "SELECT session FROM due WHERE at <= ? ORDER BY at, session LIMIT ? OFFSET ?"
        found = [self.record(name) for (name,) in self._connection.execute(names, (now, count, skip))]
        return [each.meta for each in found if each is not None]

    def newest(self, count: int, *, skip: int) -> list[SessionMeta]:
        order = "ORDER BY updated_at DESC, session LIMIT ? OFFSET ?"
        rows = self._connection.execute(f"{_RECORD} {order}", (count, skip))
        return [_versioned(*row).meta for row in rows]

    def change(self, change: Change[Beside], *, now: float) -> Written | Moved:
        """Make the change if the record is the one that it was decided on."""
        db, session, before, after = self._connection, change.session, change.before, change.after
        touched = now if change.touch else None
        if after is None:
            cursor = db.execute(
                "DELETE FROM sessions WHERE session = ? AND version = ? AND updated_at < ?",
                (
                    session,
                    before and before.version,
                    math.inf if change.idle_s is None else now - change.idle_s,
                ),
            )
        elif before is None:
            cursor = db.execute(
                "INSERT OR IGNORE INTO sessions VALUES (?, ?, ?, 0, ?)",
                (session, after.version, encode_session(after.meta), now),
            )
        else:
            cursor = db.execute(
                "UPDATE sessions SET version = ?, record = ?, updated_at = coalesce(?, updated_at)"
                " WHERE session = ? AND version = ?",
                (after.version, encode_session(after.meta), touched, session, before.version),
            )
        if not cursor.rowcount:
            return Moved(self.record(session))
        self._drop(session, "log", "requests", steps=change.dropped_steps)
        self._drop(session, "tensors", steps=change.dropped_snapshots)
        if after is None:
            for table in ("losses", "deliveries", "due"):
                db.execute(f"DELETE FROM {table} WHERE session = ?", (session,))  # noqa: S608
            return Written(None)
        if before is None:
            db.execute("INSERT OR REPLACE INTO due VALUES (?, ?)", (session, now))
        elif before.meta.job_digest != after.meta.job_digest:  # it may be kept for less long
            db.execute("UPDATE due SET at = ? WHERE session = ?", (now, session))
        if change.beside is not None:
            change.beside(self)
        total = "SELECT coalesce(sum(bytes), 0) FROM log WHERE session = ?"
        row = db.execute(
            f"UPDATE sessions SET log_bytes = ({total}) WHERE session = ? RETURNING log_bytes, updated_at",  # noqa: S608
            (session, session),
        ).fetchone()
        return Written(replace(after.meta, log_bytes=row[0], updated_at=row[1]))

    def _drop(self, session: str, *tables: str, steps: Sequence[int]) -> None:
        for table in tables:
            self._connection.executemany(
                f"DELETE FROM {table} WHERE session = ? AND step = ?",  # noqa: S608
                [(session, step) for step in steps],
            )

    def add_losses(self, session: str, losses: Mapping[int, float]) -> None:
        db = self._connection
        if self.record(session) is None:
            return
        db.executemany(
            "REPLACE INTO losses VALUES (?, ?, ?)", [(session, step, loss) for step, loss in losses.items()]
        )
        db.executemany(
            "DELETE FROM losses WHERE session = ? AND step = ?",
            [(session, step) for step in thinned(self.losses(session))],
        )

    def losses(self, session: str) -> dict[int, float]:
        return dict(
            self._connection.execute(
                "SELECT step, loss FROM losses WHERE session = ? ORDER BY step", (session,)
            )
        )

    def append_log(
        self, session: str, step: int, gradient_digest: str, bodies: Sequence[bytes | None]
    ) -> None:
        """Add an entry. Raises StoreError where a body is missing."""
        found = [body for body in bodies if body is not None]
        if len(found) < len(bodies):
            raise StoreError(f"session {session}: a request of step {step} is not in the store any more")
        db = self._connection
        db.execute(
            "INSERT INTO log VALUES (?, ?, ?, ?)", (session, step, gradient_digest, sum(map(len, found)))
        )
        db.executemany(
            "INSERT INTO requests VALUES (?, ?, ?, ?)",
            [(session, step, position, body) for position, body in enumerate(found)],
        )

    def log_entry(self, session: str, step: int) -> LogEntry:
        entry = self._connection.execute(
            "SELECT gradient_digest FROM log WHERE session = ? AND step = ?", (session, step)
        ).fetchone()
        if entry is None:
            raise KeyError(f"session {session} has no log entry of step {step}")
        rows = self._connection.execute(
            "SELECT body FROM requests WHERE session = ? AND step = ? ORDER BY position", (session, step)
        )
        return LogEntry(step=step, requests=tuple(body for (body,) in rows), gradient_digest=entry[0])

    def add_snapshot(self, session: str, step: int, tensors: Mapping[str, Blob]) -> None:
        self._connection.executemany(
            "INSERT INTO tensors VALUES (?, ?, ?, ?)",
            ((session, step, name, piece) for name, body in tensors.items() for piece in pieces(body)),
        )


def _outcome(within: Callable[[Work[Any]], Any], work: Work[Any]) -> Outcome:
    try:
        return Outcome(within(work))
    except Exception as error:
        return Outcome(error=error)


def _versioned(session: str, version: str, record: bytes, log_bytes: int, updated_at: float) -> Versioned:
    return Versioned(version, decode_session(session, record, log_bytes=log_bytes, updated_at=updated_at))


@contextmanager
def _errors(path: Path | None) -> Iterator[None]:
    """Turn what sqlite3 and the file system raise into the project's errors."""
    where = f"the store {path or 'in memory'}"
    try:
        yield
    except OSError as error:
        _refuse_without_descriptors(where, error)
        raise StoreUnavailable(f"{where} can't be opened: {error.strerror}") from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise StoreFull(f"{where} has no room", hint="free disk space") from error
        if code == sqlite3.SQLITE_NOTADB:
            raise UserError(f"{path} is not a store", hint="it is some other file: name another") from error
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
            _refuse_without_descriptors(where, error)
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            raise StoreUnavailable(
                f"{where} can't be opened: {error}", hint="check its permissions"
            ) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR):
            raise StoreUnavailable(f"{where} failed: {error}") from error
        raise StoreError(f"{where} failed: {error}") from error


def _refuse_without_descriptors(where: str, error: Exception) -> None:
    """SQLite says of a lack of file descriptors only that it can't open a file."""
    if lack_of_descriptors(error):
        raise StoreUnavailable(
            f"{where} can't be opened: this process has used up its file descriptors", hint=LACK_HINT
        ) from error
