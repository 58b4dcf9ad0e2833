"""A dashboard over a real RabbitMQ and a real Redis, that looks when a test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from deploy.accounts import Accounts
from server_worker.store import Attempt, Store, WorkerInfo, open_store
from spliteasy_cli.dashboard import Feed, Guard, serve
from spliteasy_cli.watch.cluster import ClusterClient
from spliteasy_cli.watch.dashboard_feed import ClusterFeed, ClusterOperator
from tests.attack.arena import management_url
from tests.fixtures_rabbitmq import RabbitBroker

TOKEN = "a-token-of-some-length"
SESSION = "digits.phone-1"


@dataclass(kw_only=True)
class Dashboard:
    """One that runs."""

    url: str
    store: Store
    following: ClusterFeed
    verdicts: Path
    """The folder in which the page looks for the gate's."""
    feed: Feed
    client: aiohttp.ClientSession
    accounts: Accounts

    async def parts(self) -> dict[str, Any]:
        async with self.client.get("/api/state") as answer:
            parts: dict[str, Any] = (await answer.json())["parts"]
            return parts

    async def post(self, path: str, body: object, **headers: str) -> tuple[int, str]:
        """Status, and the error's text."""
        more = {"Content-Type": "application/json", **headers}
        async with self.client.post(path, data=orjson.dumps(body), headers=more) as answer:
            return answer.status, (await answer.json()).get("error", "")


OpenDashboard = Callable[..., AbstractAsyncContextManager[Dashboard]]


@pytest.fixture
def open_dashboard(
    rabbitmq_url: str, rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, redis_url: str, tmp_path: Path
) -> OpenDashboard:
    """`open_dashboard(token=…)`, with a session, a worker and losses in the store."""

    @asynccontextmanager
    async def open_it(token: str | None = TOKEN, **guard: Any) -> AsyncIterator[Dashboard]:
        accounts = Accounts(management_url(rabbitmq_broker.node), vhost=rabbitmq_vhost)
        store = await open_store(redis_url)
        try:
            await begin(store, SESSION)
            await store.add_losses(SESSION, {0: 2.5})
            await heartbeat(store, "worker-1")
            feed = Feed()
            async with ClusterClient(rabbitmq_url, redis_url) as eyes:
                following = ClusterFeed(eyes, accounts, feed, tmp_path / "verdicts")
                await following.look()
                guarded = Guard(token=token, **guard)
                async with (
                    serve(feed, guarded, ClusterOperator(eyes, accounts), host="127.0.0.1", port=0) as port,
                    aiohttp.ClientSession(
                        f"http://127.0.0.1:{port}", cookie_jar=aiohttp.CookieJar(unsafe=True)
                    ) as client,
                ):
                    yield Dashboard(
                        url=f"http://127.0.0.1:{port}/",
                        store=store,
                        following=following,
                        verdicts=tmp_path / "verdicts",
                        feed=feed,
                        client=client,
                        accounts=accounts,
                    )
        finally:
            await store.close()
            for account in accounts.list():
                accounts.revoke(account.name)

    return open_it


async def begin(store: Store, session: str, attempt: int = 1) -> None:
    await store.open_session(
        session,
        job_digest="0" * 64,
        attempt=Attempt(number=attempt, nonce="a" * 16),
        held=(0,),
        worker="b" * 16,
        environment="test",
        agent="1.2.3",
        total_steps=600,
    )


async def heartbeat(store: Store, worker: str, host: str = "host-1") -> None:
    await store.shards(16)
    info = WorkerInfo(
        worker=worker, started_at=0.0, sessions=1, shards=(3,), steps=7, host=host, pid=1, state="serving"
    )
    await store.heartbeat(info, ttl_s=60)
