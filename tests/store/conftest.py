"""The stores that the contract suite runs against."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from server_worker.store import SqliteStore, Store, open_store
from server_worker.store.blobs.blobbed import BlobbedStore
from server_worker.store.blobs.folder import FolderBlobs
from server_worker.store.sealed import sealed
from tests.store.steps import KEYS


@pytest.fixture(
    params=[
        "memory",
        "file",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("redis-cluster", marks=pytest.mark.redis),
        "memory sealed",
        "memory blobs",
        pytest.param("redis blobs", marks=pytest.mark.redis),
        pytest.param("redis sealed", marks=pytest.mark.redis),
    ]
)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """One of the stores, empty: in memory and inline, in a file, on Redis, on a cluster of one node; two of
    them sealed, and two with all values of jobs and snapshots in a folder beside them.
    """
    opened: Store
    kind, _, over = request.param.partition(" ")
    match kind:
        case "memory":
            opened = SqliteStore(inline=True)
        case "file":
            opened = await open_store(f"sqlite:///{tmp_path}/folder/store.db")
        case "redis":
            opened = await open_store(request.getfixturevalue("redis_url"))
        case _:
            opened = await open_store(request.getfixturevalue("redis_cluster_url"))
    match over:
        case "sealed":
            yield sealed(opened, KEYS)
        case "blobs":
            yield cast(Store, BlobbedStore(opened, FolderBlobs(tmp_path / "blobs"), large_bytes=1))
        case _:
            yield opened
    await opened.close()
