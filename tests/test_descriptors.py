"""A process that has used up its file descriptors says so, whatever it wanted to open, and can try again."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from broker.amqp.connection import connect
from device_agent.state_folder import StateFolder
from server_worker.store import open_store
from server_worker.store.redis import link
from spliteasy.errors import LinkError, LinkRefused, SplitEasyError, StateError, StoreUnavailable, is_final
from spliteasy.runtime.descriptors import allow_descriptors
from tests.fixtures_redis import free_port

LACK = "file descriptors|Too many open files"


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """As after `ulimit -n` of as many as are open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = max(map(int, os.listdir("/dev/fd")))
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 4, limits[1]))
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def check(error: SplitEasyError) -> None:
    assert "ulimit -n" in (error.hint or "")
    assert not is_final(error), "the process is started again"


async def test_the_broker_cannot_be_connected_to() -> None:
    url = f"amqp://a:b@127.0.0.1:{free_port()}/"
    with no_descriptor_left(), pytest.raises(LinkError, match=LACK) as caught:
        await connect(url)
    assert not isinstance(caught.value, LinkRefused)
    check(caught.value)


async def test_redis_cannot_be_connected_to() -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    with no_descriptor_left(), pytest.raises(StoreUnavailable, match=LACK) as caught:
        await link.connect(url)
    check(caught.value)


async def test_a_sqlite_file_cannot_be_opened(tmp_path: Path) -> None:
    await (await open_store(f"sqlite:///{tmp_path}/store.db")).close()
    for name in ("store.db", "new.db", "folder/new.db"):
        with no_descriptor_left(), pytest.raises(StoreUnavailable, match=LACK) as caught:
            await open_store(f"sqlite:///{tmp_path}/{name}")
        check(caught.value)


async def test_a_sqlite_file_whose_journal_cannot_be_opened(tmp_path: Path) -> None:
    """The file itself takes the last descriptor."""
    path = tmp_path / "store.db"
    await (await open_store(f"sqlite:///{path}")).close()
    spare = os.open(os.devnull, os.O_RDONLY)
    with no_descriptor_left():
        os.close(spare)
        with pytest.raises(StoreUnavailable, match=LACK) as caught:
            await open_store(f"sqlite:///{path}")
    check(caught.value)
    await (await open_store(f"sqlite:///{path}")).close()


def test_a_state_folder_cannot_be_opened(tmp_path: Path) -> None:
    with no_descriptor_left(), pytest.raises(StateError, match=LACK) as caught:
        StateFolder(tmp_path / "state")
    check(caught.value)


def test_a_process_allows_itself_more_as_far_as_it_may() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
        allow_descriptors(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, limits[1])
        allow_descriptors(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, limits[1])
        allow_descriptors(limits[1] + 1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
