"""The files that a gateway serves beside its socket, and which pages may connect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from broker.gateway.pages import Pages
from broker.gateway.server import Gateway, serve
from broker.gateway.upstream import in_process_upstream
from broker.transport.in_process import MemoryBroker
from spliteasy_cli.browser.page import PAGE
from tests.broker.gateway_for_tests import raw_device

INDEX = b"<!doctype html>"


@asynccontextmanager
async def served(*, pages: bool = True) -> AsyncIterator[tuple[int, aiohttp.ClientSession]]:
    found = Pages({"/index.html": INDEX, "/page.js": b"0;" * 500}) if pages else None
    gateway = Gateway(in_process_upstream(MemoryBroker(), {}), pages=found)
    async with (
        serve(gateway, host="127.0.0.1", port=0) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", auto_decompress=False) as client,
    ):
        yield port, client


async def test_files_come_with_a_policy_that_allows_no_other_code() -> None:
    async with served() as (_, client):
        async with client.get("/", headers={"Accept-Encoding": "identity"}) as answer:
            assert await answer.read() == INDEX
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'" in policy
            assert "unsafe-inline" not in policy
            tag = answer.headers["ETag"]
        async with client.get("/index.html", headers={"If-None-Match": tag}) as answer:
            assert answer.status == 304
        async with client.get("/page.js", headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert len(await answer.read()) < 200


@pytest.mark.parametrize("path", ["/x.js", "/%2e%2e/pyproject.toml", "/index.html/", "/page.js%00"])
async def test_nothing_else_can_be_asked_for(path: str) -> None:
    async with served() as (_, client), client.get(path) as answer:
        assert answer.status == 404
    async with served(pages=False) as (_, client), client.get("/index.html") as answer:
        assert answer.status == 404


async def test_files_are_read_only() -> None:
    async with served() as (_, client), client.post("/index.html", data=b"x") as answer:
        assert answer.status == 405


async def test_the_gateways_own_page_may_connect_and_no_other() -> None:
    async with served() as (port, _):
        async with raw_device(port, origin=f"http://127.0.0.1:{port}") as device:
            assert not device.socket.closed
        for origin in ("http://evil.example", f"http://127.0.0.1:{port + 1}", "null"):
            with pytest.raises(aiohttp.WSServerHandshakeError):
                async with raw_device(port, origin=origin):
                    pass
    async with served(pages=False) as (port, _):
        with pytest.raises(aiohttp.WSServerHandshakeError):
            async with raw_device(port, origin=f"http://127.0.0.1:{port}"):
                pass


def test_the_page_that_ships_has_all_that_it_asks_for() -> None:
    """The names in the page's own files lead to files beside them."""
    found = {path.name for path in PAGE.iterdir()}
    index = (PAGE / "index.html").read_text()
    for name in ("icon.svg", "app.webmanifest", "style.css", "page.js"):
        assert f'"{name}"' in index
        assert name in found
    assert {"training.js", "kernels.wasm"} <= found
    assert "<script>" not in index
    assert "style=" not in index
