"""The dashboard shows what happens, and lets each visitor do what they may."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deploy.accounts import Role
from server_worker.store import Store, StoredJob
from spliteasy.errors import UserError
from spliteasy_cli.dashboard import Feed, Guard, read_token
from spliteasy_cli.dashboard import server as dashboard_server
from spliteasy_cli.dashboard.guard import MAX_ADDRESSES, MAX_WRONG, TOKEN_ENV, WRONG_S
from spliteasy_cli.history.verdicts import NONE_YET, keep_verdict
from tests.cli.test_verdicts import verdict
from tests.dashboard.conftest import SESSION, TOKEN, OpenDashboard, begin
from tests.fixtures_rabbitmq import RabbitBroker

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis]
STATIC = Path(dashboard_server.__file__).parent / "static"


async def is_paused(store: Store) -> bool:
    meta = await store.session(SESSION)
    assert meta is not None
    return meta.paused


async def events_of(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    """The parts that the stream brings, by name."""
    name = ""
    async for line in answer.content:
        field, _, value = line.decode().strip().partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


async def test_it_shows_what_the_store_has(open_dashboard: OpenDashboard) -> None:
    async with open_dashboard() as dashboard:
        parts = await dashboard.parts()
        (session,) = parts["sessions"]
        assert (session["session"], session["state"], session["step"], session["loss"]) == (
            SESSION, "training", 0, 2.5,
        )  # fmt: skip
        assert parts["losses"] == {SESSION: [[0, 2.5]]}
        assert [worker["worker"] for worker in parts["workers"]] == ["worker-1"]
        assert parts["shards"]["shards"][3]["workers"] == ["worker-1"]
        (device,) = parts["devices"]
        assert (device["device"], device["version"], device["enrolled"]) == ("phone-1", "1.2.3", False)
        assert parts["now"]["fault"] is None


async def test_it_shows_what_the_gate_said_of_the_newest_version(open_dashboard: OpenDashboard) -> None:
    async with open_dashboard() as dashboard:
        await dashboard.store.put_job(StoredJob(name="digits", digest="a" * 64, manifest=b"", parts={}))
        await dashboard.following.look()
        assert (await dashboard.parts())["gate"] == {"digits": NONE_YET}
        keep_verdict(dashboard.verdicts, verdict())
        dashboard.following.look_at_all()
        await dashboard.following.look()
        said = (await dashboard.parts())["gate"]["digits"]
        assert said.startswith("violations=1 on 2026-11-28")
        (file,) = dashboard.verdicts.iterdir()
        file.write_text("{}")
        dashboard.following.look_at_all()
        await dashboard.following.look()
        assert (await dashboard.parts())["gate"]["digits"] == said, "what was read stays"


async def test_each_change_goes_to_who_listens(open_dashboard: OpenDashboard) -> None:
    async with (
        asyncio.timeout(30),
        open_dashboard() as dashboard,
        dashboard.client.get("/api/events") as answer,
    ):
        assert answer.content_type == "text/event-stream"
        told = events_of(answer)
        first = {}
        while "now" not in first:
            name, value = await anext(told)
            first[name] = value
        assert first == await dashboard.parts(), "at first all there is"
        await dashboard.store.pause(SESSION, True)
        await begin(dashboard.store, SESSION, attempt=2)
        await dashboard.following.look()
        changed = {}
        while "now" not in changed:
            name, value = await anext(told)
            changed[name] = value
        assert [(event["kind"], event["subject"]) for event in changed["events"][:2]] == [
            ("pause", SESSION), ("resume", SESSION),
        ]  # fmt: skip
        assert changed["sessions"][0]["state"] == "paused"
        assert changed["sessions"][0]["fault"] == "resumed after step 0 (attempt 2)"
        assert "workers" not in changed, "only what changed"


async def test_without_a_token_all_is_read_only(open_dashboard: OpenDashboard) -> None:
    async with open_dashboard(token=None) as dashboard:
        assert await dashboard.post("/api/pause", {"session": SESSION}) == (
            403,
            "log in with the token first",
        )
        assert (await dashboard.post("/api/login", {"token": ""}))[0] == 403
        status, error = await dashboard.post("/api/login", {"token": TOKEN})
        assert status == 403
        assert "read-only" in error
        assert not await is_paused(dashboard.store)


async def test_who_has_the_token_pauses_and_resumes(open_dashboard: OpenDashboard) -> None:
    async with open_dashboard() as dashboard:
        assert (await dashboard.post("/api/login", {"token": TOKEN + "x"}))[0] == 403
        assert (await dashboard.post("/api/pause", {"session": SESSION}))[0] == 403
        assert (await dashboard.post("/api/login", {"token": TOKEN}))[0] == 200
        assert (await dashboard.post("/api/pause", {"session": SESSION}))[0] == 200
        assert await is_paused(dashboard.store)
        assert (await dashboard.post("/api/resume", {"session": SESSION}))[0] == 200
        assert not await is_paused(dashboard.store)
        assert await dashboard.post("/api/pause", {"session": "digits.nobody"}) == (
            404, "there is no session digits.nobody",
        )  # fmt: skip
        for body in ({"session": "*"}, {"session": ["digits"]}, {}, [SESSION]):
            assert (await dashboard.post("/api/pause", body))[0] == 400
        assert (await dashboard.post("/api/logout", {}))[0] == 200
        assert (await dashboard.post("/api/pause", {"session": SESSION}))[0] == 403
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert (await dashboard.post("/api/pause", {"session": SESSION}, **bearer))[0] == 200


async def test_a_login_is_in_a_cookie_that_no_script_reads(open_dashboard: OpenDashboard) -> None:
    async with (
        open_dashboard() as dashboard,
        dashboard.client.post("/api/login", json={"token": TOKEN}) as answer,
    ):
        cookie = answer.headers["Set-Cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert TOKEN not in cookie


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
    ids=str,
)
async def test_another_page_can_not_act_with_the_cookie(
    open_dashboard: OpenDashboard, headers: dict[str, str]
) -> None:
    async with open_dashboard() as dashboard:
        await dashboard.post("/api/login", {"token": TOKEN})
        status, _ = await dashboard.post("/api/pause", {"session": SESSION}, **headers)
        assert status in (403, 415)
        assert not await is_paused(dashboard.store)


async def test_it_answers_to_its_own_names_only(open_dashboard: OpenDashboard) -> None:
    async with open_dashboard(hosts=["Board.example"]) as dashboard:
        for host, status in (
            ("evil.example", 421),
            ("evil.example:8080", 421),
            ("localhost.evil.example", 421),
            ("127.0.0.1.evil.example", 421),
            ("127.0.0.1@evil.example", 421),
            ("localhost:8080", 200),
            ("[::1]:8080", 200),
            ("192.168.1.7", 200),
            ("board.example", 200),
        ):
            async with dashboard.client.get("/api/state", headers={"Host": host}) as answer:
                assert answer.status == status, host


async def test_only_devices_are_revoked(open_dashboard: OpenDashboard) -> None:
    async with open_dashboard() as dashboard:
        dashboard.accounts.enroll("phone-1", Role.DEVICE, "x" * 20)
        dashboard.accounts.enroll("workers", Role.WORKER, "x" * 20)
        await dashboard.post("/api/login", {"token": TOKEN})
        assert (await dashboard.post("/api/revoke", {"device": "workers"}))[0] == 404
        assert (await dashboard.post("/api/revoke", {"device": "phone-1"}))[0] == 200
        assert [account.name for account in dashboard.accounts.list()] == ["workers"]


async def test_what_it_sends_is_locked_down(open_dashboard: OpenDashboard) -> None:
    async with open_dashboard() as dashboard:
        for path in ("/", "/api/state", "/static/app.js", "/nothing", "/static/..%2fserver.py"):
            async with dashboard.client.get(path) as answer:
                text = await answer.text()
                assert TOKEN not in text
                assert "spliteasy:" not in text, "no account of the broker or store"
                policy = answer.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.status == (404 if path in ("/nothing", "/static/..%2fserver.py") else 200)
        async with dashboard.client.put("/api/pause", json={}) as answer:
            assert answer.status == 405
        async with dashboard.client.post("/api/login", json={"token": "x" * 5000}) as answer:
            assert answer.status == 413


def test_the_page_has_no_inline_script_and_loads_nothing_from_elsewhere() -> None:
    page = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert re.search(r"<[^>]*\s(style|on\w+)=", page) is None
    for file in STATIC.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text) is None, file.name
        for unsafe in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
        ):
            assert unsafe not in text, file.name
        assert file.name == "index.html" or file.name in dashboard_server.FILES, "else it is not served"


async def test_pages_beyond_the_limit_and_readers_too_slow_are_let_go(
    open_dashboard: OpenDashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_server, "MAX_READERS", 1)
    async with open_dashboard() as dashboard, dashboard.client.get("/api/events") as first:
        assert first.status == 200
        await anext(events_of(first))
        async with dashboard.client.get("/api/events") as second:
            assert second.status == 503
    feed = Feed()
    feed.publish("n", 0)
    frames = feed.frames(60.0)
    assert await anext(frames) == b"event: n\ndata: 0\n\n"
    for n in range(1, 200):
        feed.publish("n", n)
    assert [frame async for frame in frames] == []
    assert feed.readers == 0


async def test_a_silence_is_broken_by_a_comment() -> None:
    frames = Feed().frames(alive_s=0.0)
    assert await anext(frames) == b": alive\n\n"
    await frames.aclose()


def test_many_wrong_tokens_are_held_against_their_address_and_never_against_a_right_one() -> None:
    now = 0.0
    guard = Guard(token=TOKEN, clock=lambda: now)
    for n in range(MAX_WRONG):
        assert not guard.is_wary("10.0.0.1")
        assert not guard.is_token(f"guess {n}", address="10.0.0.1")
    assert guard.is_wary("10.0.0.1")
    assert not guard.is_wary("10.0.0.2")
    assert guard.is_token(TOKEN, address="10.0.0.2")
    assert guard.is_token(TOKEN, address="10.0.0.1"), "a proxy may stand between both and this"
    now = WRONG_S + 1
    assert not guard.is_wary("10.0.0.1")
    for n in range(10 * MAX_ADDRESSES):
        guard.is_token("guess", address=f"a{n}")
    assert len(guard._wrong) == MAX_ADDRESSES


async def test_strangers_lock_no_operator_out(
    open_dashboard: OpenDashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_server, "MAX_READERS", 3)
    monkeypatch.setattr(dashboard_server, "MAX_OF_ADDRESS", 2)
    async with open_dashboard(token=TOKEN) as dashboard, AsyncExitStack() as open_pages:
        client = dashboard.client
        said = [await client.post("/api/login", json={"token": "guess"}) for _ in range(MAX_WRONG + 2)]
        assert [each.status for each in said][-2:] == [429, 429]
        for expected in (200, 200, 503):
            page = await open_pages.enter_async_context(client.get("/api/events"))
            assert page.status == expected
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        async with client.get("/api/events", headers=bearer) as page:
            assert page.status == 200
            await anext(events_of(page))
        assert (await client.post("/api/login", json={"token": TOKEN})).status == 200


def test_a_login_ends() -> None:
    now = 0.0
    guard = Guard(token=TOKEN, clock=lambda: now)
    secret = guard.log_in()
    assert guard.is_login(secret)
    assert not guard.is_login("")
    now = 13 * 3600.0
    assert not guard.is_login(secret)


def test_a_token_comes_from_a_file_of_ones_own_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_ENV, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_ENV, TOKEN)
    assert read_token(None) == TOKEN
    file = tmp_path / "token"
    with pytest.raises(UserError, match="can't be read"):
        read_token(file)
    file.write_text("another-token-of-some-length\n")
    file.chmod(0o640)
    with pytest.raises(UserError, match="others can read"):
        read_token(file)
    file.chmod(0o600)
    assert read_token(file) == "another-token-of-some-length"
    file.write_text("short")
    with pytest.raises(UserError, match="16 are the least"):
        read_token(file)


async def test_a_broker_that_is_gone_is_told_and_what_was_stays(
    open_dashboard: OpenDashboard, rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str
) -> None:
    async with open_dashboard() as dashboard:
        before = (await dashboard.parts())["sessions"]
        rabbitmq_broker.delete_vhost(rabbitmq_vhost)
        async with asyncio.timeout(30):
            while not (parts := await dashboard.parts())["now"]["fault"]:
                await dashboard.following.look()
        assert parts["events"][0]["kind"] == "broker"
        assert parts["sessions"] == before
        rabbitmq_broker.call("PUT", f"vhosts/{rabbitmq_vhost}")
