"""Servers that speak TLS only: who is let in, and what a client that is given something else says."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from broker import connect
from deploy.accounts import Accounts
from deploy.nodes.certificates import TlsFiles, make_certificates
from deploy.nodes.native import HOST
from deploy.nodes.rabbitmq import RabbitNode
from deploy.nodes.redis_server import RedisServer
from server_worker.store import open_store
from spliteasy.errors import LinkDeferred, LinkError, LinkRefused, StoreError, UserError
from tests.attack.arena import open_arena
from tests.fixtures_rabbitmq import free_ports, new_node

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def node(tls: TlsFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    node = replace(new_node(tmp_path_factory.mktemp("rabbitmq")), tls=tls)
    node.start()
    yield node
    node.kill()


def management(node: RabbitNode, ca: Path) -> str:
    return f"https://{node.user}:{node.password}@{HOST}:{node.management_port}?cafile={ca}"


async def test_an_enrolled_device_trains_by_tls(node: RabbitNode, tmp_path: Path) -> None:
    async with open_arena(node, "/", tmp_path) as arena:
        device = arena.new_device()
        assert arena.url(device).startswith("amqps://")
        assert (await arena.train(device)).done


async def test_tls_can_not_be_stripped(node: RabbitNode, tls: TlsFiles) -> None:
    plain = node.url().replace("amqps://", "amqp://").partition("?")[0]
    with pytest.raises(LinkError):
        await connect(plain)
    with pytest.raises(LinkError):
        Accounts(management(node, tls.ca).replace("https:", "http:")).list()


@pytest.mark.parametrize(
    ("newest", "let_in"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_old_versions_of_tls_are_refused(
    newest: ssl.TLSVersion, let_in: bool, node: RabbitNode, tls: TlsFiles
) -> None:
    context = ssl.create_default_context(cafile=tls.ca)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    context.maximum_version = newest
    with closing(socket.create_connection((HOST, node.port))) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=HOST) as secured:
                version = secured.version()
        except (ssl.SSLError, ConnectionError):
            version = None
    assert (version is not None) == let_in


async def test_a_foreign_authority_and_a_foreign_name_are_refused(
    node: RabbitNode, tls: TlsFiles, tmp_path: Path
) -> None:
    foreign = make_certificates(tmp_path / "foreign").ca
    for url in (
        node.url().replace(str(tls.ca), str(foreign)),
        node.url().partition("?")[0],
        node.url().replace(HOST, "127.0.0.2"),
    ):
        with pytest.raises(LinkError):
            await connect(url)
    with pytest.raises(LinkRefused, match="not trusted"):
        Accounts(management(node, foreign)).list()
    assert Accounts(management(node, tls.ca)).list() == []


async def test_a_server_of_another_name_or_with_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    """Another name is final; dates may be right tomorrow, or once this machine's clock is."""
    cases = (({"hosts": ("broker.example",)}, LinkRefused), ({"days": -1}, LinkDeferred))
    for number, (changes, error) in enumerate(cases):
        files = make_certificates(tmp_path / str(number), **changes)  # type: ignore[arg-type]
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(files.certificate, files.key)
        server = await _serve(context)
        port = server.sockets[0].getsockname()[1]
        try:
            with pytest.raises(error, match="is not trusted") as caught:
                await connect(f"amqps://a:b@{HOST}:{port}/?cafile={files.ca}")
            assert type(caught.value) is error
        finally:
            server.close()
            await server.wait_closed()


async def _serve(context: ssl.SSLContext) -> asyncio.Server:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    return await asyncio.start_server(answer, HOST, 0, ssl=context)


async def test_redis_by_tls_only(tls: TlsFiles, tmp_path: Path) -> None:
    server = RedisServer(folder=tmp_path / "redis", port=free_ports(1)[0], password="tests-only", tls=tls)
    server.start()
    try:
        store = await open_store(server.url)
        assert await store.sessions() == []
        await store.close()
        foreign = make_certificates(tmp_path / "foreign").ca
        for url, error in (
            (server.url.replace(str(tls.ca), str(foreign)), UserError),
            (server.url.replace("rediss:", "redis:").partition("?")[0], StoreError),
        ):
            with pytest.raises(error):
                await open_store(url + ("&" if "?" in url else "?") + "timeout_s=3")
    finally:
        server.kill()


def test_keys_are_for_this_user_only_and_made_once(tls: TlsFiles) -> None:
    folder = tls.key.parent
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0 or os.geteuid() == 0
    for key in (tls.key, folder / "ca.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = tls.certificate.read_bytes()
    assert make_certificates(folder) == tls
    assert tls.certificate.read_bytes() == before
