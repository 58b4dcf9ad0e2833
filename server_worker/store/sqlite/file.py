"""The SQLite file of the embedded store: its tables, rows as records, transactions, errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from server_worker.store.base import Attempt, Blob, LogEntry, Owner, SessionMeta
from server_worker.store.records import pieces
from server_worker.store.rules import thinned
from server_worker.store.sqlite import fleets
from spliteasy.errors import StoreError, StoreFull, StoreUnavailable, UserError
from spliteasy.runtime.descriptors import LACK_HINT, lack_of_descriptors

FORMAT = 3
BUSY_TIMEOUT_S = 5.0
"""A write waits this long for another process that writes to the same file."""

WAL_PAGES = 16384
"""Pages in the write-ahead file before they are moved to the database: 64 MiB, some large steps."""

_SCHEMA = """
CREATE TABLE sessions (
    session TEXT PRIMARY KEY, job_digest TEXT, attempt INTEGER, attempt_nonce TEXT, resume_step INTEGER,
    fence INTEGER, owner_nonce TEXT, committed INTEGER, oldest_checkpoint INTEGER, environment TEXT,
    closed INTEGER, updated_at REAL, agent TEXT NOT NULL DEFAULT '', paused INTEGER NOT NULL DEFAULT 0,
    total_steps INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE log (
    session TEXT, step INTEGER, gradient_digest TEXT, bytes INTEGER, PRIMARY KEY (session, step)
) WITHOUT ROWID;
CREATE TABLE requests (session TEXT, step INTEGER, position INTEGER, body BLOB);
CREATE INDEX requests_by_step ON requests (session, step, position);
CREATE TABLE snapshots (session TEXT, step INTEGER, PRIMARY KEY (session, step)) WITHOUT ROWID;
CREATE TABLE tensors (session TEXT, step INTEGER, name TEXT, body BLOB);
CREATE INDEX tensors_by_step ON tensors (session, step);
CREATE TABLE jobs (
    submission INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, digest TEXT, manifest BLOB, UNIQUE (name, digest)
);
CREATE TABLE parts (name TEXT, digest TEXT, part TEXT, body BLOB);
CREATE INDEX parts_by_job ON parts (name, digest);
CREATE TABLE workers (worker TEXT PRIMARY KEY, info BLOB, expires_at REAL) WITHOUT ROWID;
CREATE TABLE losses (session TEXT, step INTEGER, loss REAL, PRIMARY KEY (session, step)) WITHOUT ROWID;
"""

_UPGRADES = {
    1: """
ALTER TABLE sessions ADD COLUMN agent TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
CREATE TABLE losses (session TEXT, step INTEGER, loss REAL, PRIMARY KEY (session, step)) WITHOUT ROWID;
""",
    2: "ALTER TABLE sessions ADD COLUMN total_steps INTEGER NOT NULL DEFAULT 0",
}
"""The statements that bring a file of each older format to the next."""

_LATER = """
CREATE TABLE IF NOT EXISTS signatures (name TEXT, digest TEXT, signature TEXT, PRIMARY KEY (name, digest));
CREATE TABLE IF NOT EXISTS allowed (device TEXT PRIMARY KEY, jobs TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deliveries (
    session TEXT, request TEXT, count INTEGER, begun_at REAL, PRIMARY KEY (session, request)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stack (setting TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
"""
"""Tables that came later, beside those that were there: no matter to versions that know nothing of them."""

_META = (
    "SELECT session, job_digest, attempt, attempt_nonce, resume_step, fence, owner_nonce, committed,"
    " oldest_checkpoint, environment, closed, updated_at,"
    " (SELECT coalesce(sum(bytes), 0) FROM log WHERE log.session = sessions.session),"
    " (SELECT group_concat(step) FROM snapshots WHERE snapshots.session = sessions.session),"
    " agent, paused, total_steps"
    " FROM sessions"
)

_T = TypeVar("_T")


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
        """Create the tables in an empty file, bring those of an older version up to date; its format then."""
        empty = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
        found = int(db.execute("PRAGMA user_version").fetchone()[0])
        if empty or found in _UPGRADES:
            missing = [_SCHEMA] if empty else [_UPGRADES[older] for older in range(found, FORMAT)]
            for statement in ";".join(missing).split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {FORMAT}")
            found = FORMAT
        if found == FORMAT:
            for statement in (_LATER + fleets.TABLES).split(";"):
                db.execute(statement)
        return found

    def close(self) -> None:
        self._connection.close()

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

    def meta(self, session: str) -> SessionMeta | None:
        row = self._connection.execute(f"{_META} WHERE session = ?", (session,)).fetchone()
        return None if row is None else _meta(row)

    def metas(self) -> list[SessionMeta]:
        return [_meta(row) for row in self._connection.execute(f"{_META} ORDER BY session")]

    def put_meta(self, meta: SessionMeta, *, updated_at: float) -> SessionMeta:
        """Store the record, drop what it no longer reaches; the record with its `log_bytes`."""
        db, session = self._connection, meta.session
        db.execute(
            "REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                session,
                meta.job_digest,
                meta.attempt.number,
                meta.attempt.nonce,
                meta.resume_step,
                meta.owner.fence,
                meta.owner.nonce,
                meta.committed,
                meta.oldest_checkpoint,
                meta.environment,
                meta.closed,
                updated_at,
                meta.agent,
                meta.paused,
                meta.total_steps,
            ),
        )
        for table in ("log", "requests"):
            db.execute(
                f"DELETE FROM {table} WHERE session = ? AND (step <= ? OR step > ?)",  # noqa: S608
                (session, meta.snapshots[0], meta.committed),
            )
        kept = ",".join(map(str, meta.snapshots))
        for table in ("snapshots", "tensors"):
            db.execute(f"DELETE FROM {table} WHERE session = ? AND step NOT IN ({kept})", (session,))  # noqa: S608
        db.executemany(
            "INSERT OR IGNORE INTO snapshots VALUES (?, ?)", [(session, step) for step in meta.snapshots]
        )
        total = db.execute("SELECT coalesce(sum(bytes), 0) FROM log WHERE session = ?", (session,)).fetchone()
        return replace(meta, log_bytes=total[0], updated_at=updated_at)

    def delete(self, session: str) -> bool:
        for table in ("log", "requests", "snapshots", "tensors", "losses", "deliveries"):
            self._connection.execute(f"DELETE FROM {table} WHERE session = ?", (session,))  # noqa: S608
        return self._connection.execute("DELETE FROM sessions WHERE session = ?", (session,)).rowcount > 0

    def add_losses(self, session: str, losses: Mapping[int, float]) -> None:
        db = self._connection
        if self.meta(session) is None:
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

    def logged_digest(self, session: str, step: int) -> str | None:
        row = self._connection.execute(
            "SELECT gradient_digest FROM log WHERE session = ? AND step = ?", (session, step)
        ).fetchone()
        return None if row is None else row[0]

    def log_entry(self, session: str, step: int) -> LogEntry:
        digest = self.logged_digest(session, step)
        if digest is None:
            raise KeyError(f"session {session} has no log entry of step {step}")
        rows = self._connection.execute(
            "SELECT body FROM requests WHERE session = ? AND step = ? ORDER BY position", (session, step)
        )
        return LogEntry(step=step, requests=tuple(body for (body,) in rows), gradient_digest=digest)

    def add_snapshot(self, session: str, step: int, tensors: Mapping[str, Blob]) -> None:
        self._connection.executemany(
            "INSERT INTO tensors VALUES (?, ?, ?, ?)",
            ((session, step, name, piece) for name, body in tensors.items() for piece in pieces(body)),
        )


def _meta(
    row: tuple[str, str, int, str, int, int, str, int, int, str, int, float, int, str, str, int, int],
) -> SessionMeta:
    return SessionMeta(
        session=row[0],
        job_digest=row[1],
        attempt=Attempt(number=row[2], nonce=row[3]),
        resume_step=row[4],
        owner=Owner(fence=row[5], nonce=row[6]),
        committed=row[7],
        oldest_checkpoint=row[8],
        environment=row[9],
        closed=bool(row[10]),
        updated_at=row[11],
        log_bytes=row[12],
        snapshots=tuple(sorted(map(int, row[13].split(",")))),
        agent=row[14],
        paused=bool(row[15]),
        total_steps=row[16],
    )


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
