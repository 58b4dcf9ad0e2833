"""Large values beside a store: where they lie, when they go, and what is said of one that is missing."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server_worker.store import Done, SqliteStore, StaleOwner, StoredJob, open_store
from server_worker.store.base import CommitOutcome, Owner, SessionMeta
from server_worker.store.blobs import blobbed
from server_worker.store.blobs.blobbed import BlobbedStore
from server_worker.store.blobs.folder import FolderBlobs
from server_worker.store.sealed import sealed
from spliteasy.errors import BlobMissing, SealBroken, StoreUnavailable, UserError
from tests.store.steps import KEYS, SESSION, begin, commit, done, put

LARGE, SMALL = bytes(range(256)) * 8, b"small"
GRACE_S = 100.0


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
async def records(clock: Clock) -> AsyncIterator[SqliteStore]:
    """The store below."""
    store = SqliteStore(inline=True, clock=clock, loss_window_s=2.0)
    yield store
    await store.close()


def over(store: Any, folder: Path, clock: Clock) -> BlobbedStore:
    """A process's way to the store and the folder."""
    return BlobbedStore(store, FolderBlobs(folder), large_bytes=1000, grace_s=GRACE_S, ticks=clock)


def files(folder: Path) -> list[str]:
    """The blobs in the folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


async def stepped(store: Any, meta: SessionMeta, step: int) -> SessionMeta:
    await put(store, meta, step, b"a", b"gb")
    return done(await commit(store, meta, step, oldest=step - 1))


async def snapshot(store: Any, meta: SessionMeta, step: int, **tensors: bytes) -> CommitOutcome:
    found: CommitOutcome = await store.put_snapshot(
        SESSION, attempt=meta.attempt, owner=meta.owner, step=step, tensors=tensors
    )
    return found


async def test_what_is_large_lies_in_the_folder(records: SqliteStore, folder: Path, clock: Clock) -> None:
    store = over(records, folder, clock)
    meta = await stepped(store, await begin(store), 1)
    assert isinstance(await snapshot(store, meta, 1, weight=LARGE, bias=SMALL), Done)
    assert await store.read_snapshot(SESSION, 1) == {"weight": LARGE, "bias": SMALL}
    (file,) = files(folder)
    assert (folder / file).read_bytes() == LARGE
    assert file.startswith(f"sessions/{SESSION}/1-")
    below = await records.read_snapshot(SESSION, 1)
    assert below["bias"] == SMALL
    assert len(below["weight"]) < 300


async def test_versions_of_a_job_share_what_they_have_in_common(
    records: SqliteStore, folder: Path, clock: Clock
) -> None:
    store = over(records, folder, clock)
    for digest in ("d1", "d2"):
        await store.put_job(
            StoredJob(
                name="toy", digest=digest, manifest=b"{}", parts={"body": LARGE, "spec": digest.encode()}
            )
        )
    assert files(folder) == [f"jobs/{hashlib.sha256(LARGE).hexdigest()}"]
    found = await store.get_job("toy", "d1")
    assert found is not None
    assert found.parts == {"body": LARGE, "spec": b"d1"}
    one = await store.get_job("toy", "d2", wanted=lambda names: ["spec"])
    assert one is not None
    assert one.parts == {"spec": b"d2"}


async def test_a_value_that_looks_like_a_pointer_is_none(
    records: SqliteStore, folder: Path, clock: Clock
) -> None:
    store = over(records, folder, clock)
    meta = await stepped(store, await begin(store), 1)
    await snapshot(store, meta, 1, weight=LARGE)
    (pointer,) = (await records.read_snapshot(SESSION, 1)).values()
    meta = await stepped(store, meta, 2)
    await snapshot(store, meta, 2, weight=pointer)
    assert await store.read_snapshot(SESSION, 2) == {"weight": pointer}


@pytest.mark.parametrize("damage", ["gone", "short", "other"])
async def test_a_blob_that_is_not_what_was_written_is_told(
    damage: str, records: SqliteStore, folder: Path, clock: Clock
) -> None:
    store = over(records, folder, clock)
    meta = await stepped(store, await begin(store), 1)
    await snapshot(store, meta, 1, weight=LARGE)
    path = folder / files(folder)[0]
    match damage:
        case "gone":
            path.unlink()
        case "short":
            path.write_bytes(LARGE[:-1])
        case _:
            path.write_bytes(LARGE[::-1])
    with pytest.raises(BlobMissing, match=f"session {SESSION}: tensor weight of step 1") as told:
        await store.read_snapshot(SESSION, 1)
    assert "backup" in str(told.value.hint)


async def test_a_process_without_the_folder_says_what_is_missing(
    records: SqliteStore, folder: Path, clock: Clock
) -> None:
    store = over(records, folder, clock)
    await store.put_job(StoredJob(name="toy", digest="d", manifest=b"{}", parts={"body": LARGE}))
    without = blobbed.blobbed(records, None)
    with pytest.raises(BlobMissing, match="this process knows no place of blobs") as told:
        await without.get_job("toy")
    assert "--blobs DIR" in str(told.value.hint)
    assert await without.sweep() == 0


async def test_a_folder_that_can_not_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="the folder of blobs"):
        await open_store(f"sqlite:///{tmp_path}/s.db", blobs=tmp_path / "file" / "blobs")


async def test_blobs_go_once_no_record_has_named_them_for_long_enough(
    records: SqliteStore, folder: Path, clock: Clock
) -> None:
    store = over(records, folder, clock)
    meta = await begin(store)
    for step in range(1, 6):
        meta = await stepped(store, meta, step)
        await snapshot(store, meta, step, weight=LARGE)
    meta = done(await snapshot(store, meta, 5, weight=LARGE))
    kept = len(meta.snapshots)
    assert len(files(folder)) > kept, "trims leave blobs behind, and so does a snapshot that is there already"
    assert await store.sweep() == 0
    clock.now += GRACE_S / 2
    assert await store.sweep() == 0
    clock.now += GRACE_S
    assert await store.sweep() > 0
    assert len(files(folder)) == kept
    for step in meta.snapshots:
        assert await store.read_snapshot(SESSION, step) == {"weight": LARGE}
    await store.forget(SESSION)
    await store.sweep()
    clock.now += 2 * GRACE_S
    assert await store.sweep() == kept
    assert files(folder) == []


async def test_the_blobs_of_the_best_step_stay(records: SqliteStore, folder: Path, clock: Clock) -> None:
    store = over(records, folder, clock)
    meta = await begin(store)
    for step in range(1, 6):
        meta = await stepped(store, meta, step)
        await snapshot(store, meta, step, weight=LARGE + bytes([step]))
        if step == 1:
            at = {"attempt": meta.attempt, "owner": meta.owner}
            meta = done(await store.keep_snapshot(SESSION, **at, step=1))
    found = await records.session(SESSION)
    assert found is not None
    assert 1 in found.best
    assert 1 not in found.snapshots
    await store.sweep()
    clock.now += 2 * GRACE_S
    await store.sweep()
    assert await store.read_snapshot(SESSION, 1) == {"weight": LARGE + bytes([1])}


async def test_a_store_that_goes_back_finds_the_blobs_that_it_names_again(
    records: SqliteStore, folder: Path, clock: Clock
) -> None:
    """A store's lost second: a commit unnames a snapshot, a sweep looks, and the store goes back."""
    store = over(records, folder, clock)
    meta = await begin(store)
    for step in (1, 2):
        meta = await stepped(store, meta, step)
        await snapshot(store, meta, step, weight=LARGE + bytes([step]))
    image = records.image()
    named = (await records.session(SESSION)).snapshots  # type: ignore[union-attr]
    for step in (3, 4, 5):
        meta = await stepped(store, meta, step)
        await snapshot(store, meta, step, weight=LARGE + bytes([step]))
    assert set(named) - set(meta.snapshots)
    await store.sweep()
    clock.now += 2.0  # within the loss window
    await store.sweep()
    records.restore(image)
    clock.now += GRACE_S - 3
    await store.sweep()  # named again: the wait begins anew
    for step in named:
        if step:
            assert await store.read_snapshot(SESSION, step) == {"weight": LARGE + bytes([step])}


async def test_a_process_that_stood_still_writes_its_blobs_again(
    records: SqliteStore, folder: Path, clock: Clock
) -> None:
    class Late:
        """A store that names a snapshot after another process has swept its blobs."""

        def __getattr__(self, name: str) -> Any:
            return getattr(records, name)

        async def put_snapshot(self, *args: Any, **kwargs: Any) -> CommitOutcome:
            other = over(records, folder, clock)
            await other.sweep()
            clock.now += 2 * GRACE_S
            assert await other.sweep() == 1
            assert files(folder) == []
            return await records.put_snapshot(*args, **kwargs)

    meta = await stepped(records, await begin(records), 1)
    store = over(Late(), folder, clock)
    assert isinstance(await snapshot(store, meta, 1, weight=LARGE), Done)
    assert await store.read_snapshot(SESSION, 1) == {"weight": LARGE}


async def test_blobs_are_there_before_a_record_names_them(
    records: SqliteStore, folder: Path, clock: Clock
) -> None:
    class Looking:
        """A store that looks into the folder when it is told of a snapshot or a job."""

        def __getattr__(self, name: str) -> Any:
            return getattr(records, name)

        async def put_snapshot(self, *args: Any, **kwargs: Any) -> CommitOutcome:
            assert [(folder / file).read_bytes() for file in files(folder)] == [LARGE]
            return await records.put_snapshot(*args, **kwargs)

        async def put_job(self, job: StoredJob) -> None:
            assert f"jobs/{hashlib.sha256(LARGE[::-1]).hexdigest()}" in files(folder)
            await records.put_job(job)

    store = over(Looking(), folder, clock)
    meta = await stepped(store, await begin(store), 1)
    assert isinstance(await snapshot(store, meta, 1, weight=LARGE), Done)
    await store.put_job(StoredJob(name="toy", digest="d", manifest=b"{}", parts={"body": LARGE[::-1]}))


async def test_a_refused_snapshot_leaves_nothing(records: SqliteStore, folder: Path, clock: Clock) -> None:
    store = over(records, folder, clock)
    meta = await stepped(store, await begin(store), 1)
    stale = Owner(fence=meta.owner.fence, nonce="another")
    outcome = await store.put_snapshot(
        SESSION, attempt=meta.attempt, owner=stale, step=1, tensors={"weight": LARGE}
    )
    assert isinstance(outcome, StaleOwner)
    assert files(folder) == []


async def test_sealed_values_are_sealed_in_the_folder_too(
    records: SqliteStore, folder: Path, clock: Clock
) -> None:
    store = sealed(over(records, folder, clock), KEYS)  # type: ignore[arg-type]
    meta = await stepped(store, await begin(store), 1)
    await snapshot(store, meta, 1, weight=LARGE)
    assert await store.read_snapshot(SESSION, 1) == {"weight": LARGE}
    (file,) = files(folder)
    assert LARGE[:64] not in (folder / file).read_bytes()
    below = await records.read_snapshot(SESSION, 1)
    moved = {**below, "other": below["weight"]}
    meta = await stepped(store, meta, 2)
    await records.put_snapshot(SESSION, attempt=meta.attempt, owner=meta.owner, step=2, tensors=moved)
    with pytest.raises(SealBroken):
        await store.read_snapshot(SESSION, 2)


def test_names_stay_in_the_folder(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "secret").write_bytes(b"secret")
    for name in ("../secret", "a/../../secret", "/etc/passwd", "a//b", "a/.b", "", "a", "a/b/c/d/e"):
        with pytest.raises(KeyError):
            blobs.read(name)
        with pytest.raises(KeyError):
            blobs.put(name, b"")
    (tmp_path / "blobs/jobs").mkdir()
    (tmp_path / "blobs/jobs/UPPER").write_bytes(b"")
    assert blobs.children("jobs") == []


def test_a_disk_that_fails_is_told(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "blobs/jobs").write_bytes(b"a file where a folder should be")
    with pytest.raises(StoreUnavailable, match="can't be used"):
        blobs.put("jobs/x", b"")


def _put_and_die(folder: Path) -> None:
    blobs = FolderBlobs(folder)
    blobs.put("jobs/whole", LARGE)
    real = os.fsync

    def die(_handle: int) -> None:
        real(_handle)
        os._exit(9)

    os.fsync = die
    blobs.put("jobs/half", LARGE)


def test_a_blob_is_whole_or_not_there_after_a_kill(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_put_and_die, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    blobs = FolderBlobs(tmp_path)
    assert blobs.read("jobs/whole") == LARGE
    with pytest.raises(KeyError):
        blobs.read("jobs/half")
    assert blobs.children("jobs") == ["jobs/whole"]
