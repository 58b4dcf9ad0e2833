"""A fleet's rounds in the embedded store."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from server_worker.store.base import Blob
from server_worker.store.records import pieces

_T = TypeVar("_T")

TABLES = """
CREATE TABLE IF NOT EXISTS rounds (fleet TEXT, number INTEGER, record BLOB, PRIMARY KEY (fleet, number));
CREATE TABLE IF NOT EXISTS members (fleet TEXT, device TEXT, about BLOB, PRIMARY KEY (fleet, device));
CREATE TABLE IF NOT EXISTS weights (fleet TEXT, name TEXT, digest TEXT, PRIMARY KEY (fleet, name));
CREATE TABLE IF NOT EXISTS weight_pieces (fleet TEXT, name TEXT, body BLOB);
CREATE INDEX IF NOT EXISTS weight_pieces_by_name ON weight_pieces (fleet, name);
"""


class Run(Protocol):
    """Runs `work` on the file: in a transaction, or on one consistent view."""

    def __call__(self, work: Callable[[sqlite3.Connection], _T]) -> Awaitable[_T]: ...


class SqliteFleets:
    """`write` and `read` are the store's own ways to its file."""

    def __init__(self, write: Run, read: Run) -> None:
        self._write, self._read = write, read

    async def rounds(self, fleet: str, *, after: int = -1) -> Sequence[bytes]:
        query = "SELECT record FROM rounds WHERE fleet = ? AND number > ? ORDER BY number"
        return await self._read(lambda db: [record for (record,) in db.execute(query, (fleet, after))])

    async def newest_round(self, fleet: str) -> bytes | None:
        return await self._read(lambda db: _newest(db, fleet)[1])

    async def append_round(
        self, fleet: str, record: bytes, *, number: int, previous: bytes | None, weights: Sequence[str] = ()
    ) -> bytes | None:
        def append(db: sqlite3.Connection) -> bytes | None:
            newest, last = _newest(db, fleet)
            if newest >= number:
                query = "SELECT record FROM rounds WHERE fleet = ? AND number = ?"
                found: bytes = db.execute(query, (fleet, number)).fetchone()[0]
                return found
            if newest != number - 1 or last != previous or not _has(db, fleet, weights):
                return None
            db.execute("INSERT INTO rounds VALUES (?, ?, ?)", (fleet, number, record))
            return record

        return await self._write(append)

    async def put_member(self, fleet: str, device: str, about: bytes) -> None:
        await self._write(
            lambda db: db.execute("REPLACE INTO members VALUES (?, ?, ?)", (fleet, device, about))
        )

    async def members(self, fleet: str, devices: Sequence[str] | None = None) -> Mapping[str, bytes]:
        query = "SELECT device, about FROM members WHERE fleet = ?"
        if devices is None:
            return await self._read(
                lambda db: dict(db.execute(f"{query} ORDER BY device", (fleet,)).fetchall())
            )

        def read(db: sqlite3.Connection) -> dict[str, bytes]:
            found = (db.execute(f"{query} AND device = ?", (fleet, device)) for device in sorted(devices))
            return dict(row for rows in found for row in rows)

        return await self._read(read)

    async def put_weights(self, fleet: str, name: str, body: Blob, *, digest: str) -> str:
        def put(db: sqlite3.Connection) -> str:
            query = "SELECT digest FROM weights WHERE fleet = ? AND name = ?"
            kept = db.execute(query, (fleet, name)).fetchone()
            if kept is not None:
                return str(kept[0])
            db.execute("INSERT INTO weights VALUES (?, ?, ?)", (fleet, name, digest))
            db.executemany(
                "INSERT INTO weight_pieces VALUES (?, ?, ?)", ((fleet, name, each) for each in pieces(body))
            )
            return digest

        return await self._write(put)

    async def weights(self, fleet: str) -> Mapping[str, str]:
        query = "SELECT name, digest FROM weights WHERE fleet = ? ORDER BY name"
        return await self._read(lambda db: dict(db.execute(query, (fleet,)).fetchall()))

    async def read_weights(self, fleet: str, name: str) -> bytes:
        query = "SELECT body FROM weight_pieces WHERE fleet = ? AND name = ? ORDER BY rowid"
        found = await self._read(lambda db: [body for (body,) in db.execute(query, (fleet, name))])
        if not found:
            raise KeyError(f"fleet {fleet} has no weights {name}")
        return b"".join(found)

    async def drop_weights(self, fleet: str, names: Sequence[str], *, needs: Sequence[str] = ()) -> None:
        def drop(db: sqlite3.Connection) -> None:
            if not _has(db, fleet, needs):
                return
            for table in ("weights", "weight_pieces"):
                query = f"DELETE FROM {table} WHERE fleet = ? AND name = ?"  # noqa: S608
                db.executemany(query, [(fleet, name) for name in names])

        await self._write(drop)

    async def forget(self, fleet: str) -> bool:
        def forget(db: sqlite3.Connection) -> bool:
            counts = [
                db.execute(f"DELETE FROM {table} WHERE fleet = ?", (fleet,)).rowcount  # noqa: S608
                for table in ("rounds", "members", "weights", "weight_pieces")
            ]
            return any(counts)

        return await self._write(forget)


def _has(db: sqlite3.Connection, fleet: str, names: Sequence[str]) -> bool:
    """Return whether there are weights of all these names."""
    query = "SELECT 1 FROM weights WHERE fleet = ? AND name = ?"
    return all(db.execute(query, (fleet, name)).fetchone() is not None for name in names)


def _newest(db: sqlite3.Connection, fleet: str) -> tuple[int, bytes | None]:
    """Return the highest number and its record; (-1, None) where there is none."""
    query = "SELECT number, record FROM rounds WHERE fleet = ? ORDER BY number DESC LIMIT 1"
    row: tuple[Any, Any] | None = db.execute(query, (fleet,)).fetchone()
    return (-1, None) if row is None else (row[0], row[1])
