"""RabbitMQ's own features: URLs, TLS, accounts and permissions, CC and BCC, operators, alarms."""

from __future__ import annotations

import asyncio
import random
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiormq
import pytest

import broker
from broker.amqp.connection import connect
from broker.amqp.options import AmqpOptions
from broker.amqp.queues import queue_arguments
from broker.transport import topology
from broker.transport.base import Delivery, Depth, Subscription
from spliteasy.errors import AccountRefused, LinkDeferred, LinkError, LinkRefused
from tests.broker.conftest import RabbitHub
from tests.broker.proxy import Proxy
from tests.fixtures_rabbitmq import RabbitBroker, free_ports

pytestmark = pytest.mark.rabbitmq

SHARD = topology.shard_queue(3)
KEY = topology.uplink_key("phone-1", 3)
REPLY = topology.reply_queue("phone-1", "0123456789abcdef")
SECRET = "s3cret-passw0rd"


async def take(subscription: Subscription) -> Delivery:
    async with asyncio.timeout(20):
        return await anext(aiter(subscription))


# Connecting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kind", "says"),
    [
        ("amqp://spliteasy:{secret}@127.0.0.1:{port}/", AccountRefused, "refused the account 'spliteasy'"),
        ("amqp://nobody:{secret}@127.0.0.1:{port}/", AccountRefused, "refused the account 'nobody'"),
        ("amqp://spliteasy:{password}@127.0.0.1:{port}/nowhere", LinkDeferred, "virtual host 'nowhere'"),
        ("amqp://spliteasy:{secret}@127.0.0.1:{closed}/", LinkError, "connection refused"),
        ("amqp://spliteasy:{secret}@no-such-host.invalid/", LinkError, "'no-such-host.invalid' is unknown"),
        ("amqps://spliteasy:{secret}@127.0.0.1:{port}/", LinkRefused, "no TLS"),
        ("amqps://spliteasy:{secret}@127.0.0.1:{port}/?cafile=/no/file", LinkRefused, "no such file"),
        ("amqp://spliteasy:{secret}@127.0.0.1:999999/", LinkRefused, "host or port that is not valid"),
        ("amqps://spliteasy:{secret}@127.0.0.1:{port}/?cadata=abc", LinkRefused, "malformed"),
        ("amqp:///vhost", LinkRefused, "not one of AMQP"),
        ("mqtt://spliteasy:{secret}@127.0.0.1:{port}/", LinkRefused, "no transport for mqtt"),
        ("", LinkRefused, "no transport"),
    ],
)
async def test_what_is_wrong_with_a_url_is_said_in_one_line_without_its_password(
    rabbitmq_broker: RabbitBroker, no_loop_errors: None, url: str, kind: type[LinkError], says: str
) -> None:
    node = rabbitmq_broker.node
    (closed,) = free_ports(1)
    url = url.format(secret=SECRET, password=node.password, port=node.port, closed=closed)
    with pytest.raises(LinkError) as caught:
        await broker.connect(url)
    assert type(caught.value) is kind
    text = str(caught.value)
    assert says in text
    assert "\n" not in text
    assert caught.value.hint
    assert SECRET not in text + repr(caught.value)
    assert caught.value.__cause__ is None


async def test_accounts_and_virtual_hosts_with_any_name(rabbitmq_broker: RabbitBroker) -> None:
    user, password, vhost = "dev/ice:1 ü@", "p@ss/w:rd%20?#", "a/b c?%ü"
    rabbitmq_broker.call("PUT", f"vhosts/{quote(vhost, safe='')}")
    rabbitmq_broker.call("PUT", f"users/{quote(user, safe='')}", {"password": password, "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    path = f"permissions/{quote(vhost, safe='')}/{quote(user, safe='')}"
    rabbitmq_broker.call("PUT", path, everything)
    transport = await broker.connect(replace(rabbitmq_broker.node, user=user, password=password).url(vhost))
    assert transport.principal == user
    await transport.declare(REPLY)
    subscription = await transport.subscribe(REPLY.name, prefetch=1)
    await transport.publish(REPLY.name, b"x", to_queue=True)
    assert (await take(subscription)).principal == user
    await transport.close()


async def test_a_peer_that_says_nothing_is_given_up(no_loop_errors: None) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(LinkError, match="does not answer"):
        await connect(f"amqp://a:b@127.0.0.1:{port}/", options=AmqpOptions(connect_timeout_s=0.2))
    server.close()
    await server.wait_closed()


async def test_a_peer_that_speaks_another_protocol(no_loop_errors: None) -> None:
    async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(speak_http, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(LinkError, match="AMQP"):
        await connect(f"amqp://a:b@127.0.0.1:{port}/", options=AmqpOptions(connect_timeout_s=1))
    server.close()
    await server.wait_closed()


HALF_A_SERVER_HELLO = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03"


async def test_of_several_nodes_any_that_answers_is_taken(rabbitmq_url: str) -> None:
    parts, dead = urlsplit(rabbitmq_url), [f"127.0.0.1:{port}" for port in free_ports(2)]
    account, place = parts.netloc.rpartition("@")[::2]
    for seed in range(4):
        places = ",".join([dead[0], place, dead[1]])
        url = parts._replace(netloc=f"{account}@{places}").geturl()
        transport = await connect(url, rng=random.Random(seed))
        await transport.declare(REPLY)
        await transport.close()
    with pytest.raises(LinkError) as nobody:
        await connect(parts._replace(netloc=f"{account}@{','.join(dead)}").geturl())
    assert not isinstance(nobody.value, LinkRefused)
    stranger = parts._replace(netloc=f"nobody:wrong@{place},{dead[0]}").geturl()
    with pytest.raises(LinkError) as unsure:
        await connect(stranger)
    assert not isinstance(unsure.value, LinkRefused), "the node that is away may know the account"
    with pytest.raises(AccountRefused):
        await connect(parts._replace(netloc=f"nobody:wrong@{place},{place}").geturl())
    with pytest.raises(LinkRefused):
        await connect(parts._replace(netloc=f"{account}@{place},").geturl())


@pytest.mark.parametrize(("after", "saying"), [(0, b""), (5, b""), (4096, b""), (4096, HALF_A_SERVER_HELLO)])
async def test_a_tls_handshake_that_breaks_off_can_pass(
    no_loop_errors: None, after: int, saying: bytes
) -> None:
    """A broker that is just starting, or ending: taken, read from or even answered, then hung up on."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if after:
            await reader.read(after)
        writer.write(saying)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(LinkDeferred, match="broke the connection off") as caught:
        await connect(f"amqps://a:{SECRET}@127.0.0.1:{port}/")
    assert SECRET not in str(caught.value)
    server.close()
    await server.wait_closed()


async def test_connecting_can_be_cancelled_at_any_moment(rabbitmq_url: str, no_loop_errors: None) -> None:
    for turns in range(0, 60, 3):
        attempt = asyncio.create_task(connect(rabbitmq_url))
        for _ in range(turns):
            await asyncio.sleep(0)
        attempt.cancel()
        (outcome,) = await asyncio.gather(attempt, return_exceptions=True)
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, asyncio.CancelledError)
        else:
            await outcome.close()


async def test_when_the_second_connection_fails_the_first_does_not_stay(
    rabbitmq_broker: RabbitBroker, no_loop_errors: None
) -> None:
    node = rabbitmq_broker.node
    async with Proxy(node.port, accept=1) as proxy:
        with pytest.raises(LinkError):
            await connect(replace(node, port=proxy.port).url())
        async with asyncio.timeout(20):
            await proxy.wait_idle()


# TLS --------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for `localhost` (not for 127.0.0.1), with its key in the same file."""
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", "key.pem", "-out", "cert.pem", "-days", "1", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost",
        ],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    return tmp_path


@pytest.fixture
async def tls_port(rabbitmq_broker: RabbitBroker, certificate: Path) -> AsyncIterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    async with Proxy(rabbitmq_broker.node.port, tls=context) as proxy:
        yield proxy.port


async def test_tls_with_its_authority(
    rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, tls_port: int, certificate: Path, no_loop_errors: None
) -> None:
    account = f"spliteasy:{rabbitmq_broker.node.password}"
    url = f"amqps://{account}@localhost:{tls_port}/{rabbitmq_vhost}?cafile={certificate}/cert.pem"
    transport = await connect(url)
    await transport.declare(SHARD)
    await transport.publish(KEY, bytes(1 << 20))
    assert await transport.depth(SHARD.name) == Depth(messages=1, consumers=0)
    await transport.close()


@pytest.mark.parametrize(("host", "trusted"), [("localhost", False), ("127.0.0.1", True)])
async def test_a_certificate_that_is_foreign_or_of_another_name_is_refused(
    tls_port: int, certificate: Path, no_loop_errors: None, host: str, trusted: bool
) -> None:
    options = f"?cafile={certificate}/cert.pem" if trusted else ""
    with pytest.raises(LinkRefused, match="not trusted") as caught:
        await connect(f"amqps://a:{SECRET}@{host}:{tls_port}/{options}")
    assert "cafile" in str(caught.value)


async def test_plain_amqp_to_a_tls_port(tls_port: int) -> None:
    with pytest.raises(LinkError, match="amqps"):
        await connect(f"amqp://a:{SECRET}@127.0.0.1:{tls_port}/")


# Who sent it, and by which way ---------------------------------------------------------------------------


async def raw_publish(url: str, routing_key: str, body: bytes, **properties: Any) -> None:
    """Publish what a client of another make can send."""
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    await channel.basic_publish(
        body,
        exchange=topology.UPLINK,
        routing_key=routing_key,
        properties=aiormq.spec.Basic.Properties(**properties),
    )
    await connection.close()


async def test_a_sender_that_does_not_say_who_it_is_has_no_principal(
    rabbit: RabbitHub, rabbitmq_url: str
) -> None:
    worker = await rabbit.connect("worker-1")
    await worker.declare(SHARD)
    subscription = await worker.subscribe(SHARD.name, prefetch=1)
    await raw_publish(rabbitmq_url, KEY, b"anonymous")
    delivery = await take(subscription)
    assert delivery.principal is None
    assert not delivery.copied


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_copies_to_other_keys_are_marked(rabbit: RabbitHub, rabbitmq_url: str, header: str) -> None:
    """They can go round topic permissions before 4.0.3. The broker takes BCC off, but not the first key."""
    worker = await rabbit.connect("worker-1")
    await worker.declare(SHARD, topology.shard_queue(4))
    subscription = await worker.subscribe(topology.shard_queue(4).name, prefetch=1)
    await raw_publish(rabbitmq_url, KEY, b"copy", headers={header: ["s.phone-2.04"]})
    delivery = await take(subscription)
    assert delivery.copied
    assert delivery.routing_key == KEY


async def test_headers_that_are_not_text_are_left_out(rabbit: RabbitHub, rabbitmq_url: str) -> None:
    worker = await rabbit.connect("worker-1")
    await worker.declare(SHARD)
    subscription = await worker.subscribe(SHARD.name, prefetch=1)
    odd = {"number": 1, "list": ["x"], "table": {"a": "b"}, "none": None, "text": "x"}
    await raw_publish(rabbitmq_url, KEY, b"x", headers=odd)
    assert (await take(subscription)).headers == {"text": "x"}


async def test_a_device_account_may_do_what_it_needs_and_nothing_else(
    rabbit: RabbitHub, rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str
) -> None:
    worker = await rabbit.connect("worker-1")
    await worker.declare(*topology.worker_queues(shards=4))
    victim_queue = topology.reply_queue("phone-2", "f" * 16)
    await worker.declare(victim_queue)
    device = await rabbit.connect("phone-1")
    own = r"^spliteasy\.reply\.phone-1\."
    rabbitmq_broker.permit(rabbitmq_vhost, "phone-1", configure=own, read=own, write=r"^spliteasy\.uplink$")
    rabbitmq_broker.permit_topics(
        rabbitmq_vhost, "phone-1", exchange=topology.UPLINK, write=r"^s\.phone-1\.[^.]+$"
    )

    await device.declare(REPLY)
    subscription = await device.subscribe(REPLY.name, prefetch=1)
    await device.publish(KEY, b"mine")
    await worker.publish(REPLY.name, b"reply", to_queue=True)
    assert bytes((await take(subscription)).body) == b"reply"
    for forbidden in (
        device.publish(topology.uplink_key("phone-2", 3), b"forged"),
        device.publish(victim_queue.name, b"forged", to_queue=True),
        device.publish(REPLY.name, b"even its own", to_queue=True),
        device.subscribe(SHARD.name, prefetch=1),
        device.subscribe(victim_queue.name, prefetch=1),
        device.declare(topology.reply_queue("phone-2", "e" * 16)),
        device.declare(SHARD),
        device.delete(SHARD.name),
        device.delete(victim_queue.name),
    ):
        with pytest.raises(LinkRefused, match="not permitted"):
            await forbidden
    await device.publish(KEY, b"mine again")
    assert await worker.depth(SHARD.name) == Depth(messages=2, consumers=0)
    assert await worker.depth(victim_queue.name) == Depth(messages=0, consumers=0)


# Operators, alarms and silence ------------------------------------------------------------------------------


async def test_connections_that_the_operator_closes(
    rabbit: RabbitHub, rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str
) -> None:
    worker, device = await rabbit.connect("worker-1"), await rabbit.connect("phone-1")
    await worker.declare(SHARD)
    subscription = await worker.subscribe(SHARD.name, prefetch=1)
    reader = asyncio.create_task(take(subscription))
    await asyncio.to_thread(
        rabbitmq_broker.node.ctl, "close_all_connections", "-p", rabbitmq_vhost, "maintenance tonight"
    )
    async with asyncio.timeout(20):
        await asyncio.gather(worker.wait_lost(), device.wait_lost())
        with pytest.raises(LinkError, match="maintenance tonight"):
            await reader
    with pytest.raises(LinkError, match="maintenance tonight"):
        await device.publish(KEY, b"x")


async def test_a_blocked_broker_times_publishers_out_and_serves_consumers(
    rabbit: RabbitHub, rabbitmq_broker: RabbitBroker
) -> None:
    device = await rabbit.connect("phone-1", publish_timeout_s=0.5)
    worker = await rabbit.connect("worker-1")
    await worker.declare(SHARD)
    await device.publish(KEY, b"before")
    node = rabbitmq_broker.node
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "absolute", "1000")
    try:
        with pytest.raises(LinkError, match="in time"):
            await device.publish(KEY, b"blocked")
        subscription = await worker.subscribe(SHARD.name, prefetch=10)
        delivery = await take(subscription)
        await subscription.ack(delivery)
        assert bytes(delivery.body) == b"before"
    finally:
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")
    # What timed out may still arrive, and does here.
    assert bytes((await take(subscription)).body) == b"blocked"
    await device.publish(KEY, b"after")
    assert bytes((await take(subscription)).body) == b"after"


async def test_the_watchdog_finds_a_consumer_that_vanished_without_a_word(rabbit: RabbitHub) -> None:
    worker = await rabbit.connect("worker-1", watchdog_s=0.05)
    operator = await rabbit.connect("operator")
    await worker.declare(SHARD)
    subscription = await worker.subscribe(SHARD.name, prefetch=1)
    subscription._channel.on_consumer_cancel_callbacks.clear()  # the word that the broker does send
    await operator.delete(SHARD.name)
    with pytest.raises(LinkError, match="gone"):
        await take(subscription)


async def test_a_network_that_falls_silent_is_noticed(rabbit: RabbitHub) -> None:
    transport = await rabbit.connect("worker-1", heartbeat_s=1, silence_s=1.5, watchdog_s=0.25)
    await transport.declare(SHARD)
    subscription = await transport.subscribe(SHARD.name, prefetch=1)
    rabbit.proxy(transport).stall()
    waiting = [
        asyncio.ensure_future(call)
        for call in (transport.publish(KEY, b"x"), transport.depth(SHARD.name), anext(aiter(subscription)))
    ]
    async with asyncio.timeout(20):
        await transport.wait_lost()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LinkError] * 3


# Arguments ----------------------------------------------------------------------------------------------


def test_queue_arguments_say_what_newer_brokers_default_otherwise() -> None:
    assert queue_arguments(SHARD, 20) == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-single-active-consumer": True,
        "x-dead-letter-exchange": "spliteasy.dead",
    }
    assert queue_arguments(REPLY, 20) == {"x-queue-type": "classic", "x-expires": 120_000}
    assert queue_arguments(topology.dead_queue(), 20) == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-max-length-bytes": 256 << 20,
        "x-overflow": "drop-head",
    }


async def test_queues_and_messages_are_durable(
    rabbit: RabbitHub, rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str
) -> None:
    worker = await rabbit.connect("worker-1")
    await worker.declare(*topology.worker_queues(shards=1), REPLY)
    for queue in rabbitmq_broker.call("GET", f"queues/{rabbitmq_vhost}"):
        assert queue["durable"], queue["name"]
        assert not queue["exclusive"], queue["name"]
        assert not queue["auto_delete"], queue["name"]
