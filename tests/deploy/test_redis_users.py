"""Users of Redis: they run what the store needs and no command more, on their own keys only."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions
from redis.asyncio import Redis

from deploy.nodes.certificates import TlsFiles, make_certificates
from deploy.nodes.redis_users import COMMANDS, RedisRole, RedisUser
from server_worker.store import StoredJob, WorkerInfo, open_store
from server_worker.store.redis.store import RedisStore
from spliteasy.errors import StoreError, UserError
from tests.fixtures_redis import StartRedis
from tests.store import steps

pytestmark = pytest.mark.redis

WORKER = RedisUser(name="workers", password="w" * 20, role=RedisRole.WORKER)
OPERATOR = RedisUser(name="spliteasy", password="o" * 20, role=RedisRole.OPERATOR)
JOB = StoredJob(
    name="digits",
    digest="0" * 64,
    manifest=b"{}",
    parts={"body": b"x" * 100, "head": b"y"},
    signature="5" * 128,
)
INFO = WorkerInfo(
    worker="w1", started_at=0.0, sessions=0, shards=(), steps=0, host="h", pid=1, state="serving"
)
NOT_OURS = {"acl", "auth", "client", "command", "config", "hello", "monitor", "select"}
"""Commands by which the client library introduces itself, and which may be refused."""
REFUSED = r"(?i)permission|not allowed|can't access"
FORBIDDEN = (
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "dir", "/tmp"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("FLUSHALL",),
    ("SHUTDOWN",),
    ("MODULE", "LOAD", "/tmp/x.so"),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("ACL", "LIST"),
    ("DEBUG", "SLEEP", "0"),
    ("SAVE",),
    ("MONITOR",),
    ("GET", "else"),
    ("SET", "else", "1"),
    ("SET", "spliteasy:{digits@0}:part:x:0", "1"),
    ("HSET", "spliteasy:jobs", "digits", "0"),
    ("HSET", "spliteasy:allowed", "phone-1", "else"),
    ("HSET", "spliteasy:{digits@0}:job", "manifest", "1"),
    ("EVAL", "return redis.call('SET', 'spliteasy:{digits@0}:job', '1')", "0"),
    ("EVAL", "return redis.call('CONFIG', 'GET', '*')", "0"),
)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def serve(store: RedisStore) -> None:
    """All that a worker asks of its store."""
    assert await store.shards(16) == 16
    assert await store.get_job("digits") == JOB
    assert await store.job_versions() == {"digits": [JOB.digest]}
    assert await store.allowed(["phone-1"]) == {"phone-1": ("digits",)}
    meta = await steps.begin(store)
    meta = await steps.run_steps(store, meta, 2)
    meta = steps.done(await steps.snapshot(store, meta, 2))
    await steps.put(store, meta, 3, bytes(1 << 20))
    await store.keep_requests(meta.session, attempt=meta.attempt, owner=meta.owner)
    assert await store.queue_type("classic") == "classic"
    assert await store.begin_delivery(None, "aa") == 1
    await store.end_delivery(None, "aa")
    assert await store.begin_delivery(meta.session, "aa") == 1
    await store.end_delivery(meta.session, "aa")
    assert await store.read_snapshot(meta.session, 2) == {"weight": b"w"}
    meta = await steps.run_steps(store, meta, 4, oldest=3)
    assert len(await steps.log_of(store, 2, 4)) == 2
    steps.done(await store.claim(meta.session, attempt=meta.attempt, step=5, worker="w2"))
    assert await store.pause(meta.session, False)
    await store.add_losses(meta.session, dict.fromkeys(range(600), 1.0))
    assert 0 < len(await store.losses(meta.session)) < 600
    meta = (await store.sessions())[0]
    assert await store.session_count() == await store.active_count(60) == 1
    assert await store.session_counts(["digits"]) == {"digits": 1}
    assert await store.sessions_after(5) == await store.due_sessions(5) == [meta]
    await store.look_later({meta.session: 60.0})
    await store._link.call("ZREM", "spliteasy:names", meta.session)
    await store.check_format()
    assert await store.sessions_after(5) == [meta], "the index is mended"
    steps.done(await store.close_session(meta.session, attempt=meta.attempt, owner=meta.owner))
    await store.heartbeat(INFO, ttl_s=5)
    assert [info.worker for info in await store.workers()] == ["w1"]
    await store.leave("w1")
    assert await store.forget(meta.session)


async def test_workers_and_operators_do_their_work_and_need_every_command(
    start_redis: StartRedis, tls: TlsFiles
) -> None:
    server = start_redis(tls=tls, users=(OPERATOR, WORKER))
    operator, worker = await open_store(server.url), await open_store(server.url_of(WORKER))
    assert isinstance(worker, RedisStore)
    assert worker.loss_window_s == 2.0
    await operator.put_job(JOB)
    await operator.allow("phone-1", ["digits"])
    await operator.allow("phone-2", None)
    await serve(worker)
    for store in (operator, worker):
        await store.close()
    stats = await _as(server.url, lambda client: client.info("commandstats"))
    used = {name.removeprefix("cmdstat_").partition("|")[0] for name in stats}
    assert set(COMMANDS) - used == set()
    assert used - NOT_OURS <= set(COMMANDS)


async def test_a_worker_may_nothing_else(start_redis: StartRedis) -> None:
    server = start_redis(users=(OPERATOR, WORKER))
    for command in FORBIDDEN:
        with pytest.raises(exceptions.ResponseError, match=REFUSED):
            await _as(server.url_of(WORKER), lambda client, command=command: client.execute_command(*command))
    store = await open_store(server.url_of(WORKER))
    with pytest.raises(StoreError, match=REFUSED):
        await store.put_job(JOB)
    await store.close()


async def test_nobody_else_comes_in(start_redis: StartRedis) -> None:
    url = start_redis(users=(OPERATOR, WORKER)).url
    for account in ("", "workers:wrong@", "default:@", f":{OPERATOR.password}@"):
        with pytest.raises(UserError, match="refused the credentials"):
            await open_store(re.sub(r"//[^@]*@", f"//{account}", url))


def test_a_line_for_a_server_of_ones_own() -> None:
    command = [sys.executable, "-m", "deploy.nodes.redis_users"]
    made = subprocess.run(
        [*command, "worker", "--name", "workers"],
        input="w" * 20 + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout == f"user {WORKER.line}\n"
    assert "w" * 20 not in made.stdout
    short = subprocess.run(
        [*command, "operator"], input="short\n", capture_output=True, text=True, check=False
    )
    assert short.returncode == 2
    assert "short" not in short.stderr


def test_no_password_lies_in_the_configuration(start_redis: StartRedis) -> None:
    server = start_redis(users=(OPERATOR, WORKER))
    texts = [path.read_text(errors="replace") for path in Path(server.folder).rglob("*") if path.is_file()]
    assert not any(user.password in text for user in server.users for text in texts)


async def _as(url: str, act: Callable[[Any], Awaitable[Any]]) -> Any:
    client = Redis.from_url(re.sub(r"[?&]loss_window_s=[^&]*", "", url))
    try:
        return await act(client)
    finally:
        await client.aclose()
