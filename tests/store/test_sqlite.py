"""The SQLite store's own features: images for simulations, a full disk, killed processes, two at once."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from server_worker.store import Done, Owner, SqliteStore
from server_worker.store.sqlite import file
from server_worker.store.sqlite.file import Database
from spliteasy.errors import StoreError, StoreFull, StoreUnavailable, UserError
from tests.store.steps import (
    FIRST,
    SECOND,
    SESSION,
    begin,
    commit,
    done,
    log_of,
    logged_steps,
    open_at,
    put,
    run_steps,
    snapshot,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_an_inline_store_never_gives_way() -> None:
    """Nothing but its own schedule decides in a simulation what comes next."""
    store = SqliteStore(inline=True)
    order: list[str] = []

    async def other() -> None:
        order.append("other")

    task = asyncio.create_task(other())
    await run_steps(store, await begin(store), 3)
    await log_of(store, 0, 3)
    order.append("store")
    await task
    assert order == ["store", "other"]
    await store.close()


async def test_restoring_an_image_loses_what_came_after_it() -> None:
    store = SqliteStore(inline=True, loss_window_s=2.0)
    assert store.loss_window_s == 2.0
    meta = await run_steps(store, await begin(store), 3)
    meta = done(await snapshot(store, meta, 2))
    image = store.image()
    await put(store, meta, 5, b"waiting", b"waiting")
    await run_steps(store, meta, 4, oldest=3)
    await open_at(store, attempt=SECOND, held=(4,), worker="w2")
    store.restore(image)
    assert await store.session(SESSION) == meta
    assert await logged_steps(store) == [1, 2, 3]
    assert await store.read_snapshot(SESSION, 2) == {"weight": b"w"}
    meta = await run_steps(store, meta, 4)
    with pytest.raises(StoreError):
        await commit(store, meta, 5)
    assert (await run_steps(store, meta, 6)).committed == 6
    await store.close()


async def test_time_is_the_clock_that_it_is_given() -> None:
    clock = Clock()
    store = SqliteStore(inline=True, clock=clock, put_ttl_s=60)
    meta = await begin(store)
    assert meta.updated_at == 1000
    await put(store, meta, 1, b"f", b"b")
    clock.now += 60
    with pytest.raises(StoreError):
        await commit(store, meta, 1)
    await put(store, meta, 1, b"f")
    clock.now += 59
    await put(store, meta, 1, b"f")
    with pytest.raises(StoreError):
        await commit(store, meta, 1)
    await put(store, meta, 1, b"f", b"b")
    assert done(await commit(store, meta, 1)).updated_at == 1119
    await store.close()


async def test_a_full_disk_writes_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    meta = await run_steps(store, await begin(store), 2)
    connection = store._database._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 8}")
    await put(store, meta, 3, bytes(200_000), b"b3")
    for refused in (commit(store, meta, 3), snapshot(store, meta, 2, bytes(200_000))):
        with pytest.raises(StoreFull):
            await refused
    assert await store.session(SESSION) == meta
    assert await logged_steps(store) == [1, 2]
    connection.execute("PRAGMA max_page_count = 1000000")
    assert done(await commit(store, meta, 3)).committed == 3
    await store.close()


async def test_a_file_that_another_process_keeps_locked_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "BUSY_TIMEOUT_S", 0.05)
    store = SqliteStore(tmp_path / "store.db")
    meta = await run_steps(store, await begin(store), 1)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.claim(SESSION, attempt=FIRST, step=2, worker="w2")
    assert await store.session(SESSION) == meta
    other.execute("ROLLBACK")
    other.close()
    assert isinstance(await store.claim(SESSION, attempt=FIRST, step=2, worker="w2"), Done)
    await store.close()


async def test_two_stores_on_one_file_fence_each_other(tmp_path: Path) -> None:
    """Two stores share the file as two worker processes do."""
    first, second = SqliteStore(tmp_path / "store.db"), SqliteStore(tmp_path / "store.db")
    zombie = await run_steps(first, await begin(first), 2)
    owner = done(await second.claim(SESSION, attempt=FIRST, step=3, worker="w2"))
    await put(first, zombie, 3, b"zombie", b"zombie")
    assert not isinstance(await commit(first, zombie, 3), Done)
    meta = await run_steps(second, owner, 4)
    assert await first.session(SESSION) == meta
    assert await logged_steps(first) == [1, 2, 3, 4]
    for store in (first, second):
        await store.close()


async def test_a_cancelled_call_leaves_the_store_in_order(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    meta = await begin(store)
    rng = random.Random(1)
    for step in range(1, 30):
        await put(store, meta, step, b"f%d" % step, b"b%d" % step)
        task = asyncio.create_task(commit(store, meta, step))
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert done(await commit(store, meta, step)).committed == step
    assert await logged_steps(store) == list(range(1, 30))
    await store.close()


async def test_calls_after_close_fail_and_closing_again_is_harmless(tmp_path: Path) -> None:
    for store in (SqliteStore(inline=True), SqliteStore(tmp_path / "store.db")):
        await begin(store)
        await store.close()
        await store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.sessions()


KILLED = """
import asyncio, sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from server_worker.store import SqliteStore
from tests.store.steps import begin, commit, done, put, snapshot

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    meta = await begin(store)
    for step in range(1, 100000):
        await put(store, meta, step, b"f%d" % step * 5000, b"b%d" % step)
        meta = done(await commit(store, meta, step, oldest=step - 5))
        if step % 4 == 0:
            meta = done(await snapshot(store, meta, step, b"w%d" % step))
        print(step, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("kill_at", [1, 6, 23])
def test_a_process_killed_in_the_middle_of_its_commits_loses_none_of_them(
    tmp_path: Path, kill_at: int
) -> None:
    path = tmp_path / "store.db"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(kill_at)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
    asyncio.run(_check_killed(path, [int(line) for line in said if line.endswith(b"\n")][-1]))


async def _check_killed(path: Path, said: int) -> None:
    store = SqliteStore(path)
    meta = await store.session(SESSION)
    assert meta is not None
    assert meta.committed in (said, said + 1)
    for entry in await log_of(store, meta.snapshots[0], meta.committed):
        assert entry.requests == (b"f%d" % entry.step * 5000, b"b%d" % entry.step)
    for step in meta.snapshots:
        assert await store.read_snapshot(SESSION, step) == ({"weight": b"w%d" % step} if step else {})
    again = await open_at(store, attempt=SECOND, held=(meta.committed,), worker="w2")
    assert done(again).owner == Owner(fence=2, nonce="w2")
    await store.close()


async def test_a_file_of_an_older_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with closing(sqlite3.connect(file)) as db:
        db.executescript("CREATE TABLE sessions (session TEXT, committed INTEGER); PRAGMA user_version = 3")
    with pytest.raises(UserError, match="has format 3, this version reads 4"):
        SqliteStore(file)


async def test_calls_that_wait_together_share_a_transaction(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    commits: list[str] = []
    store._database._connection.set_trace_callback(
        lambda statement: commits.append(statement) if statement == "COMMIT" else None
    )
    devices = [f"phone-{n}" for n in range(20)]
    await asyncio.gather(*(store.fleets.put_member("digits@00", each, b"waits") for each in devices))
    assert len(commits) < len(devices), "the first may run alone, while the others come"
    assert sorted(await store.fleets.members("digits@00")) == sorted(devices)
    await store.close()


def writes(device: str) -> Callable[[sqlite3.Connection], str]:
    def work(db: sqlite3.Connection) -> str:
        db.execute("INSERT INTO members VALUES ('digits@00', ?, ?)", (device, b"waits"))
        return device

    return work


def test_a_call_that_fails_is_undone_alone() -> None:
    database = Database(None)

    def fails(db: sqlite3.Connection) -> None:
        writes("phone-2")(db)
        raise StoreError("this call fails")

    calls = [writes("phone-1"), fails, writes("phone-1"), writes("phone-3")]
    outcomes = database.together([(work, True) for work in calls])
    assert [outcome.value for outcome in outcomes] == ["phone-1", None, None, "phone-3"]
    assert [type(outcome.error) for outcome in outcomes] == [type(None), StoreError, StoreError, type(None)]
    rows = database.query(lambda db: db.execute("SELECT device FROM members ORDER BY device").fetchall())
    assert rows == [("phone-1",), ("phone-3",)]
    database.close()


def test_where_the_transaction_fails_each_call_runs_alone() -> None:
    database = Database(None)

    def undoes_all(db: sqlite3.Connection) -> None:
        """Do as SQLite does where the disk is full."""
        db.execute("ROLLBACK")
        raise StoreFull("no room")

    outcomes = database.together([(writes("phone-1"), True), (undoes_all, True), (writes("phone-3"), True)])
    assert [outcome.value for outcome in outcomes] == ["phone-1", None, "phone-3"]
    assert isinstance(outcomes[1].error, StoreFull)
    rows = database.query(lambda db: db.execute("SELECT device FROM members ORDER BY device").fetchall())
    assert rows == [("phone-1",), ("phone-3",)]
    database.close()


def test_where_another_process_writes_all_calls_are_told_so(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    database, other = Database(path), Database(path)
    database._connection.execute("PRAGMA busy_timeout = 1")
    other._connection.execute("BEGIN IMMEDIATE")
    outcomes = database.together([(writes("phone-1"), True), (writes("phone-2"), True)])
    assert all(isinstance(outcome.error, StoreUnavailable) for outcome in outcomes)
    for each in (database, other):
        each.close()
