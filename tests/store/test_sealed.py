"""Sealed values: nothing readable in the store, and nothing served that is not what was sealed there."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from server_worker.store import LogEntry, SessionMeta, SqliteStore, Store, StoreKeys, open_store
from server_worker.store.keys import StoreKey, parse_keys
from server_worker.store.sealed import INLINE_BYTES, sealed
from spliteasy.errors import KeyMissing, SealBroken, UserError
from tests.fixtures_redis import RedisServer
from tests.store.steps import (
    FIRST,
    KEYS,
    NEW,
    OLD,
    SECOND,
    SESSION,
    begin,
    commit,
    done,
    log_of,
    open_at,
    put,
    run_steps,
    snapshot,
)

ACTIVATION = np.linspace(-1, 1, 64, dtype=np.float32).tobytes()
WEIGHT = np.linspace(3, 4, 64, dtype=np.float32).tobytes()
DIGEST = "d" * 16
OTHER_SESSION = "digits.phone-2"
ONLY_OLD, ONLY_NEW = StoreKeys((OLD,), open_too=False), StoreKeys((NEW,), open_too=False)


@pytest.fixture
async def raw() -> AsyncIterator[SqliteStore]:
    """The store below the seals."""
    store = SqliteStore(inline=True)
    yield store
    await store.close()


async def filled(store: Store, session: str = SESSION) -> SessionMeta:
    """Two steps, each with ACTIVATION and a snapshot of WEIGHT; the first of them can be gone back to."""
    meta = await begin(store, session)
    for step in (1, 2):
        await put(store, meta, step, ACTIVATION, b"gb")
        meta = done(await commit(store, meta, step, digest=f"{DIGEST}{step}"))
    return done(await snapshot(store, meta, 2, WEIGHT))


def change(raw: SqliteStore, statement: str, *values: object) -> None:
    """Have somebody at the store's tables."""
    raw._database._connection.execute(statement, values)


async def entry_of(store: Store, step: int, session: str = SESSION) -> LogEntry:
    (entry,) = await log_of(store, step - 1, step, session)
    return entry


# Nothing to read ----------------------------------------------------------------------------------


async def test_the_file_has_nothing_that_can_be_read(tmp_path: Path) -> None:
    for name, keys, readable in (("open", StoreKeys(), True), ("sealed", KEYS, False)):
        path = tmp_path / name / "store.db"
        store = await open_store(f"sqlite:///{path}", keys)
        await filled(store)
        content = b"".join(file.read_bytes() for file in path.parent.iterdir())
        for secret in (ACTIVATION, ACTIVATION[64:96], WEIGHT, WEIGHT[64:96], DIGEST.encode()):
            assert (secret in content) == readable
        await store.close()


@pytest.mark.redis
async def test_redis_has_nothing_that_can_be_read(redis_server: RedisServer) -> None:
    """Small and large requests, in the log and waiting for their commit, and a snapshot."""
    for database, keys, readable in ((0, StoreKeys(), True), (1, KEYS, False)):
        url = redis_server.url.replace("/0", f"/{database}")
        store = await open_store(url, keys)
        meta = await filled(store)
        await put(store, meta, 3, ACTIVATION * 8192)  # 2 MiB: written ahead of its commit
        link = (await open_store(url))._link
        content = b""
        for key in await link.call("KEYS", "*"):
            kind = await link.call("TYPE", key)
            content += repr(await link.call("HGETALL", key)).encode() if kind == b"hash" else b""
            content += await link.call("GET", key) if kind == b"string" else b""
        assert len(content) > len(ACTIVATION) * 8192
        for secret in (ACTIVATION[64:96], WEIGHT[64:96], DIGEST.encode()):
            assert (secret in content) == readable
        await store.close()
        await link.close()


async def test_equal_values_look_unlike_each_other(raw: SqliteStore) -> None:
    store = sealed(raw, KEYS)
    await filled(store)
    await filled(store, OTHER_SESSION)
    entries = [await entry_of(raw, step, session) for session in (SESSION, OTHER_SESSION) for step in (1, 2)]
    bodies = [body for entry in entries for body in entry.requests]
    assert len({bytes(body) for body in bodies}) == len(bodies) == 8
    assert len({entry.gradient_digest.rpartition(":")[2] for entry in entries}) == 4
    first, other = await raw.read_snapshot(SESSION, 2), await raw.read_snapshot(OTHER_SESSION, 2)
    assert first["weight"] != other["weight"]


async def test_a_repeated_put_is_sealed_anew_and_a_repeated_commit_is_the_same(raw: SqliteStore) -> None:
    store = sealed(raw, KEYS)
    meta = await begin(store)
    await put(store, meta, 1, b"f", b"b")
    await put(store, meta, 1, b"f", b"b")
    done(await commit(store, meta, 1))
    assert done(await commit(store, meta, 1)).committed == 1
    assert (await entry_of(store, 1)).requests == (b"f", b"b")


async def test_large_values_are_sealed_beside_the_loop_and_come_back(raw: SqliteStore) -> None:
    store, large = sealed(raw, KEYS), bytes(range(256)) * (INLINE_BYTES // 128)
    meta = await begin(store)
    ran: list[str] = []

    async def beside() -> None:
        ran.append("beside")

    other = asyncio.create_task(beside())
    await put(store, meta, 1, large)
    assert ran == ["beside"]
    await other
    done(await commit(store, meta, 1, requests=1))
    assert (await entry_of(store, 1)).requests == (large,)


# Keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [(StoreKeys(), "--store-key"), (ONLY_OLD, "add that key to the key file")],
    ids=["none", "another"],
)
async def test_without_the_key_nothing_is_served(raw: SqliteStore, keys: StoreKeys, said: str) -> None:
    await filled(sealed(raw, ONLY_NEW))
    store = sealed(raw, keys)
    for reading in (log_of(store, 0, 1), store.read_snapshot(SESSION, 2)):
        with pytest.raises(KeyMissing, match=f"sealed with the key {NEW.name}") as caught:
            await reading
        assert said in (caught.value.hint or "")
    assert await store.read_snapshot(SESSION, 0) == {}


@pytest.mark.parametrize("keys", [StoreKeys(), ONLY_OLD], ids=["none", "another"])
async def test_a_store_of_other_keys_is_not_opened(tmp_path: Path, keys: StoreKeys) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    store = await open_store(url, ONLY_NEW)
    await filled(store)
    await store.close()
    with pytest.raises(UserError, match=NEW.name):
        await open_store(url, keys)
    records_only = await open_store(url)
    assert [meta.committed for meta in await records_only.sessions()] == [2]
    await records_only.close()


async def test_a_rotation_by_three_steps_loses_nothing(raw: SqliteStore) -> None:
    """The new key is known everywhere before any worker seals with it."""
    meta = await run_steps(sealed(raw, ONLY_OLD), await begin(raw), 2)
    first = sealed(raw, StoreKeys((OLD, NEW), open_too=False))
    meta = await run_steps(first, meta, 3)
    second = sealed(raw, StoreKeys((NEW, OLD), open_too=False))
    meta = await run_steps(second, meta, 5)
    for worker in (first, second):
        assert [entry.requests[0] for entry in await log_of(worker, 0, 5)] == [
            b"f%d" % k for k in range(1, 6)
        ]
    meta = done(await snapshot(second, meta, 4))
    done(await commit_next(second, meta, oldest=4))
    last = sealed(raw, ONLY_NEW)
    assert await last.read_snapshot(SESSION, 4) == {"weight": b"w"}
    assert [entry.step for entry in await log_of(last, 4, 6)] == [5, 6]


async def commit_next(store: Store, meta: SessionMeta, *, oldest: int) -> object:
    await put(store, meta, meta.committed + 1, b"f", b"b")
    return await commit(store, meta, meta.committed + 1, oldest=oldest)


async def test_a_session_written_in_the_open_is_refused_unless_the_file_says_open(raw: SqliteStore) -> None:
    meta = await filled(raw)
    for reading in (log_of(sealed(raw, KEYS), 0, 1), sealed(raw, KEYS).read_snapshot(SESSION, 2)):
        with pytest.raises(KeyMissing, match="in the open") as caught:
            await reading
        assert "`open`" in (caught.value.hint or "")
    store = sealed(raw, StoreKeys((NEW,), open_too=True))
    assert (await entry_of(store, 1)).requests[0] == ACTIVATION
    assert await store.read_snapshot(SESSION, 2) == {"weight": WEIGHT}
    done(await commit_next(store, meta, oldest=0))
    assert (await entry_of(raw, 3)).requests[0] != b"f"
    assert (await entry_of(store, 3)).requests[0] == b"f"


def test_keys_of_sessions_differ_and_a_key_shows_nowhere() -> None:
    key = StoreKey(bytes(range(32)))
    assert key.for_values("a.b") != key.for_values("a.c")
    assert key.for_values("a.b") not in (OLD._raw, NEW.for_values("a.b"))
    for text in (repr(KEYS), repr(key), key.name):
        assert bytes(range(32)).hex()[:12] not in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key"),
        ("open\n", "holds no key"),
        ("ab" * 31, "line 1"),
        (f"# mine\n{'ab' * 32}\nsecret word", "line 3"),
        (f"{'ab' * 32}\n{'AB' * 32}", "twice"),
    ],
)
def test_a_key_file_that_is_wrong(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        parse_keys(text, source="k")
    assert "secret" not in str(caught.value)
    assert "abab" not in str(caught.value)


def test_a_key_file_lists_the_newest_first() -> None:
    keys = parse_keys(f"# newest\n{'ab' * 32}  # 2027\n\n{'CD' * 32}\nopen\n", source="k")
    assert [key.name for key in keys.keys] == [StoreKey(b"\xab" * 32).name, StoreKey(b"\xcd" * 32).name]
    assert keys.open_too
    assert not parse_keys("ab" * 32, source="k").open_too


# Altered and moved --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 11, 12, 100, -17, -1])
async def test_a_changed_byte_of_a_request_is_told(raw: SqliteStore, place: int) -> None:
    store = sealed(raw, KEYS)
    await filled(store)
    body = bytearray((await entry_of(raw, 1)).requests[0])
    body[place] ^= 1
    change(raw, "UPDATE requests SET body = ? WHERE step = 1 AND position = 0", bytes(body))
    with pytest.raises(SealBroken, match="request 0 of step 1"):
        await entry_of(store, 1)
    assert (await entry_of(store, 2)).requests[0] == ACTIVATION


@pytest.mark.parametrize("body", [b"", b"short", ACTIVATION])
async def test_a_request_that_was_never_sealed_is_not_served_beside_a_label(
    raw: SqliteStore, body: bytes
) -> None:
    store = sealed(raw, StoreKeys((NEW,), open_too=True))
    await filled(store)
    change(raw, "UPDATE requests SET body = ? WHERE step = 1 AND position = 0", body)
    with pytest.raises(SealBroken):
        await entry_of(store, 1)


async def test_a_request_opens_in_its_own_place_only(raw: SqliteStore) -> None:
    """Not at another index, step or session, nor within another attempt."""
    store = sealed(raw, KEYS)
    await filled(store)
    await filled(store, OTHER_SESSION)
    right = (await entry_of(raw, 1)).requests[0]
    for session, step, position in ((SESSION, 1, 1), (SESSION, 2, 0), (OTHER_SESSION, 1, 0)):
        change(
            raw,
            "UPDATE requests SET body = ? WHERE session = ? AND step = ? AND position = ?",
            *(right, session, step, position),
        )
        with pytest.raises(SealBroken):
            await entry_of(store, step, session)
    meta = done(await open_at(store, attempt=SECOND, held=(0,)))
    await put(store, meta, 1, ACTIVATION, b"gb")
    done(await commit(store, meta, 1))
    assert (await entry_of(store, 1)).requests[0] == ACTIVATION
    change(
        raw, "UPDATE requests SET body = ? WHERE session = ? AND step = 1 AND position = 0", right, SESSION
    )
    with pytest.raises(SealBroken):
        await entry_of(store, 1)


async def test_a_label_opens_in_its_own_place_only(raw: SqliteStore) -> None:
    store = sealed(raw, KEYS)
    await filled(store)
    label = (await entry_of(raw, 1)).gradient_digest
    for other in (
        (await entry_of(raw, 2)).gradient_digest,
        label[:-1] + ("0" if label[-1] != "0" else "1"),
        label.replace(":1:", ":2:"),
        label.replace(FIRST.nonce, SECOND.nonce),
        label.replace(":1:", ":x:"),
        "sealed1:",
        f"sealed1:{NEW.name}:1:aaaa:zz",
        f"sealed1:{NEW.name}:1:aaaa:",
    ):
        change(raw, "UPDATE log SET gradient_digest = ? WHERE step = 1", other)
        with pytest.raises(SealBroken):
            await entry_of(store, 1)
    change(raw, "UPDATE log SET gradient_digest = 'ga1' WHERE step = 1")
    with pytest.raises(KeyMissing, match="in the open"):
        await entry_of(store, 1)


async def test_tensors_of_a_snapshot_are_neither_changed_nor_exchanged_nor_left_out(raw: SqliteStore) -> None:
    store = sealed(raw, KEYS)
    meta = await run_steps(store, await begin(store), 2)
    for step in (1, 2):
        await store.put_snapshot(
            SESSION, attempt=meta.attempt, owner=meta.owner, step=step, tensors={"a": b"1", "b": b"2"}
        )
    whole = raw.image()
    for statement in (
        "UPDATE tensors SET body = (SELECT body FROM tensors WHERE step = 2 AND name = 'b')"
        " WHERE step = 2 AND name = 'a'",
        "UPDATE tensors SET body = (SELECT body FROM tensors WHERE step = 1 AND name = 'a')"
        " WHERE step = 2 AND name = 'a'",
        "UPDATE tensors SET body = zeroblob(29) WHERE step = 2 AND name = 'a'",
        "UPDATE tensors SET name = 'c' WHERE step = 2 AND name = 'a'",
        "DELETE FROM tensors WHERE step = 2 AND name = 'a'",
        "UPDATE tensors SET body = CAST('sealed1:' AS BLOB) WHERE step = 2 AND name = 'sealed1'",
    ):
        change(raw, statement)
        with pytest.raises(SealBroken):
            await store.read_snapshot(SESSION, 2)
        raw.restore(whole)
    change(raw, "DELETE FROM tensors WHERE step = 2")
    with pytest.raises(KeyMissing, match="in the open"):
        await store.read_snapshot(SESSION, 2)
    raw.restore(whole)
    assert await store.read_snapshot(SESSION, 2) == {"a": b"1", "b": b"2"}


async def test_one_altered_session_keeps_no_worker_from_beginning(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await open_store(f"sqlite:///{path}", KEYS)
    await filled(store)
    await store.close()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE requests SET body = zeroblob(50)")
    store = await open_store(f"sqlite:///{path}", KEYS)
    with pytest.raises(SealBroken):
        await entry_of(store, 2)
    await store.close()
