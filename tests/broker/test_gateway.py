"""What a gateway adds to the transport: accounts, limits, its end, and its place before a broker.

That it carries frames as the broker does is in test_transport_contract.py.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

import broker
from broker.gateway import metrics
from broker.gateway.limits import GatewayLimits
from broker.gateway.server import Gateway, serve
from broker.gateway.upstream import broker_upstream, in_process_upstream
from broker.gateway.wire import Kind, Packet
from broker.transport.base import Transport
from broker.transport.in_process import MemoryBroker
from broker.transport.topology import REPLY_TO, reply_slot, shard_queue, uplink_key
from deploy.nodes.certificates import make_certificates
from spliteasy.errors import AccountGone, AccountRefused, LinkDeferred, LinkError, LinkRefused
from spliteasy.observability.prometheus import PrometheusMeter
from tests.broker.gateway_for_tests import RawDevice, raw_device
from tests.broker.proxy import Proxy
from tests.fixtures_rabbitmq import PASSWORD, RabbitBroker, free_ports

HOST = "127.0.0.1"
DEVICE = "phone-1"
OWN, KEY = reply_slot(DEVICE, 3), uplink_key(DEVICE, 3)
SHARD = shard_queue(3)
MIB = 1 << 20


class Doors:
    """Gateways before one in-process broker, and devices that connect to them."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.broker = MemoryBroker()
        self.meter = PrometheusMeter(metrics.ALL)
        self._stack = stack

    async def open(
        self, *, tls: ssl.SSLContext | None = None, origins: tuple[str, ...] = (), **limits: Any
    ) -> tuple[Gateway, int]:
        """A gateway, and its port."""
        gateway = Gateway(
            in_process_upstream(self.broker, {DEVICE: PASSWORD, "phone-2": PASSWORD}),
            limits=GatewayLimits(**{"drain_s": 1.0, **limits}),
            origins=origins,
            meter=self.meter,
        )
        port = await self._stack.enter_async_context(serve(gateway, host=HOST, port=0, tls=tls))
        return gateway, port

    async def worker(self) -> Transport:
        transport = self.broker.connect("workers")
        await transport.declare(SHARD)
        return transport

    async def device(self, port: int) -> Transport:
        transport = await broker.connect(f"ws://{DEVICE}:{PASSWORD}@{HOST}:{port}")
        self._stack.push_async_callback(transport.close)
        return transport

    async def raw(self, port: int, **options: Any) -> RawDevice:
        return await self._stack.enter_async_context(raw_device(port, **options))

    async def greeted(self, port: int, **options: Any) -> RawDevice:
        """A raw device whose account was accepted."""
        device = await self.raw(port, **options)
        welcome = await device.hello(DEVICE, PASSWORD)
        assert welcome is not None
        assert welcome.kind is Kind.WELCOME
        return device


@pytest.fixture
async def doors(no_loop_errors: None) -> AsyncIterator[Doors]:
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        yield Doors(stack)


async def until(holds: Callable[[], bool]) -> None:
    """Return when it holds; the test's time limit ends the wait."""
    while not holds():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)


# Accounts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("account", "password"),
    [(DEVICE, "wrong"), (DEVICE, ""), ("nobody", PASSWORD), ("guest", "guest"), ("Not A Name", PASSWORD)],
)
async def test_an_account_that_is_not_a_devices_is_refused(doors: Doors, account: str, password: str) -> None:
    _, port = await doors.open()
    device = await doors.raw(port)
    assert await device.hello(account, password) is not None
    assert await device.closed() == 1000
    if password and account == DEVICE:
        with pytest.raises(AccountRefused, match="refused the account"):
            await broker.connect(f"ws://{account}:{password}@{HOST}:{port}")


async def test_no_password_is_logged(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    _, port = await doors.open()
    device = await doors.device(port)
    await device.close()
    with pytest.raises(AccountRefused) as refused:
        await broker.connect(f"ws://{DEVICE}:s3cret-passw0rd@{HOST}:{port}")
    assert "s3cret" not in str(refused.value) + caplog.text
    assert PASSWORD not in caplog.text


async def test_a_device_may_do_only_what_is_its_own(doors: Doors) -> None:
    _, port = await doors.open()
    device = await doors.greeted(port)
    other = reply_slot("phone-2", 3).name
    longer = f"{OWN.name}0"
    for packet in (
        Packet(kind=Kind.PUBLISH, number=1, text=uplink_key("phone-2", 3)),
        Packet(kind=Kind.PUBLISH, number=1, text=uplink_key("phone-11", 3)),
        Packet(kind=Kind.PUBLISH, number=1, text=f"{KEY}.x"),
        Packet(kind=Kind.PUBLISH, number=1, text=OWN.name),
        Packet(kind=Kind.PUBLISH, number=1, text=f"{KEY}\n{other}"),
        *(
            Packet(kind=kind, number=1, text=name)
            for kind in (Kind.DECLARE, Kind.SUBSCRIBE)
            for name in (other, longer, SHARD.name, "spliteasy.front", "")
        ),
    ):
        await device.send(packet)
        assert DEVICE in await device.refusal()
    await device.send(Packet(kind=Kind.DECLARE, number=2, text=OWN.name))
    assert await device.packet() == Packet(kind=Kind.DONE, number=2, body=memoryview(b"")), "it goes on"


async def test_a_worker_sees_who_the_broker_authenticated(doors: Doors) -> None:
    _, port = await doors.open()
    worker, device = await doors.worker(), await doors.device(port)
    subscription = await worker.subscribe(SHARD.name, prefetch=1)
    await device.publish(KEY, b"x", headers={REPLY_TO: OWN.name})
    delivery = await anext(aiter(subscription))
    assert (delivery.principal, delivery.headers) == (DEVICE, {REPLY_TO: OWN.name})


async def test_what_only_workers_do_is_refused_in_words(doors: Doors) -> None:
    _, port = await doors.open()
    device = await doors.device(port)
    await device.declare(OWN)
    subscription = await device.subscribe(OWN.name, prefetch=1)
    calls: list[Awaitable[object]] = [
        device.declare(SHARD),
        device.depth(OWN.name),
        device.delete(OWN.name),
        device.is_as_declared(OWN),
        device.publish(OWN.name, b"x", to_queue=True),
        device.publish(KEY, b"x", headers={"CC": "x"}),
        subscription.cancel(),
    ]
    for call in calls:
        with pytest.raises(LinkRefused, match="a device may not"):
            await call


# What is not a device -----------------------------------------------------------------------------------


async def test_only_pages_that_were_named_may_connect(doors: Doors) -> None:
    _, port = await doors.open(origins=("https://train.example/",))
    await doors.greeted(port, origin="https://train.example")
    for origin in (
        "https://evil.example",
        "https://train.example.evil.example",
        "http://train.example",
        "null",
    ):
        with pytest.raises(Exception, match="403"):
            await doors.raw(port, origin=origin)
    await doors.greeted(port)


@pytest.mark.parametrize(
    "request_line", ["GET / HTTP/1.1", "GET /link HTTP/1.1", "POST /link HTTP/1.1", "GET /../link HTTP/1.1"]
)
async def test_other_requests_are_answered_and_lead_nowhere(doors: Doors, request_line: str) -> None:
    _, port = await doors.open()
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"{request_line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    status = (await reader.read()).split(b" ")[1]
    assert status in (b"404", b"426")
    writer.close()


@pytest.mark.parametrize("begin", [b"", b"GET /link HTTP/1.1\r\n", b"\x16\x03\x01"])
async def test_who_names_no_account_in_time_is_disconnected(doors: Doors, begin: bytes) -> None:
    gateway, port = await doors.open(authenticate_s=0.2)
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(begin)
    with suppress(ConnectionResetError):
        await reader.read()  # to the end
    writer.close()
    idle = await doors.raw(port)
    assert await idle.packet() is None
    await until(lambda: gateway.admission.visits == 0)


async def test_too_many_strangers_make_the_oldest_go_and_keep_no_device_out(doors: Doors) -> None:
    gateway, port = await doors.open(strangers=3, per_address=100)
    strangers = [await doors.raw(port) for _ in range(5)]
    for early in strangers[:2]:
        assert await early.packet() is None
    welcome = await strangers[-1].hello(DEVICE, PASSWORD)
    assert welcome is not None
    assert welcome.kind is Kind.WELCOME
    assert gateway.devices == 1


async def test_connections_are_bounded_in_all_and_by_address(doors: Doors) -> None:
    gateway, port = await doors.open(connections=4, per_address=3)
    here = [await doors.greeted(port) for _ in range(3)]
    with pytest.raises(LinkError):
        await doors.device(port)
    await doors.greeted(port, source="127.0.0.2")
    with pytest.raises(Exception, match=r"closed|reset|disconnected"):
        await doors.raw(port, source="127.0.0.3")
    assert gateway.admission.full
    await here[0].socket.close()
    await until(lambda: gateway.admission.visits == 3)
    await doors.greeted(port, source="127.0.0.3")
    assert b'refused_total{why="address"}' in doors.meter.render()


@pytest.mark.parametrize(
    "packet",
    [
        Packet(kind=Kind.HELLO, text=DEVICE),
        Packet(kind=Kind.DONE, number=1),
        Packet(kind=Kind.PUBLISH, text=KEY),
        Packet(kind=Kind.ACK, number=1, argument=1, body=b"hidden"),
    ],
)
async def test_what_is_no_packet_ends_the_connection(doors: Doors, packet: Packet) -> None:
    gateway, port = await doors.open()
    device = await doors.greeted(port)
    await device.send(packet)
    assert "does not understand" in await device.refusal()
    assert await device.closed() == 1008
    await until(lambda: gateway.devices == 0)


async def test_a_delivery_that_is_not_open_can_not_be_acknowledged(doors: Doors) -> None:
    _, port = await doors.open()
    device = await doors.greeted(port)
    await device.send(Packet(kind=Kind.DECLARE, number=1, text=OWN.name))
    await device.send(Packet(kind=Kind.SUBSCRIBE, number=2, argument=1, text=OWN.name))
    await device.send(Packet(kind=Kind.ACK, number=9, argument=1))  # of a subscription that has ended, say
    await device.send(Packet(kind=Kind.ACK, number=2, argument=1))
    assert [(await device.packet()).number for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
    assert "not open" in await device.refusal()


async def test_text_and_oversize_end_the_connection(doors: Doors) -> None:
    _, port = await doors.open()
    device = await doors.greeted(port)
    await device.socket.send_str("hello")
    assert await device.closed() == 1008
    large = await doors.greeted(port)
    await large.socket.send_bytes(bytes(2 * MIB))
    assert await large.closed() == 1009


# Memory -------------------------------------------------------------------------------------------------


async def test_a_device_has_so_many_subscriptions_and_no_more(doors: Doors) -> None:
    _, port = await doors.open(subscriptions=2)
    device = await doors.device(port)
    await device.declare(OWN)
    for _ in range(2):
        await device.subscribe(OWN.name, prefetch=1)
    with pytest.raises(LinkRefused, match="2 queues at most"):
        await device.subscribe(OWN.name, prefetch=1)


async def test_nothing_is_read_from_a_device_whose_frames_are_not_confirmed(doors: Doors) -> None:
    """The broker confirms nothing here: what the gateway holds is what its limits say."""
    confirmed, begun = asyncio.Event(), 0

    class Blocked:
        def __init__(self, transport: Transport) -> None:
            self._transport = transport

        def __getattr__(self, name: str) -> Any:
            return getattr(self._transport, name)

        async def publish(self, *arguments: Any, **options: Any) -> None:
            nonlocal begun
            begun += 1
            await confirmed.wait()

    async def upstream(account: str, _: str) -> Any:
        return Blocked(doors.broker.connect(account))

    gateway = Gateway(upstream, limits=GatewayLimits(frames_in_flight=4, in_flight_bytes=2 * MIB))
    async with serve(gateway, host=HOST, port=0) as port:
        device = await doors.greeted(port)
        sending = asyncio.create_task(_flood(device, 64))
        await until(lambda: gateway.budgets.in_flight_bytes == 2 * MIB)
        await asyncio.wait({sending}, timeout=0.2)
        assert not sending.done(), "the socket takes no more"
        assert (begun, gateway.budgets.in_flight_bytes) == (2, 2 * MIB)
        confirmed.set()
        for _ in range(64):
            packet = await device.packet()
            assert packet is not None
            assert packet.kind is Kind.DONE
        await sending
        await until(lambda: gateway.budgets.in_flight_bytes == 0)


async def _flood(device: RawDevice, frames: int) -> None:
    for number in range(1, frames + 1):
        await device.send(Packet(kind=Kind.PUBLISH, number=number, text=KEY, body=bytes(MIB)))


async def test_a_device_that_does_not_read_is_disconnected_and_loses_nothing(doors: Doors) -> None:
    gateway, port = await doors.open(slow_reader_s=1.0, ping_s=60.0)
    worker = await doors.worker()
    slow = await doors.greeted(port)
    await slow.send(Packet(kind=Kind.DECLARE, number=1, text=OWN.name))
    await slow.packet()
    for _ in range(24):
        await worker.publish(OWN.name, bytes(MIB), to_queue=True)
    slow.socket._response.connection.transport.pause_reading()  # type: ignore[union-attr]
    await slow.send(Packet(kind=Kind.SUBSCRIBE, number=2, argument=1000, text=OWN.name))
    await until(lambda: gateway.budgets.held.total > MIB)
    assert gateway.budgets.held.total <= 16 * (MIB + 2000), "its prefetch is bounded, whatever it asks for"
    await until(lambda: gateway.devices == 0)
    assert gateway.budgets.held.total == 0
    depth = await worker.depth(OWN.name)
    assert depth is not None
    assert depth.messages == 24


async def test_the_slowest_reader_goes_where_all_hold_too_much(doors: Doors) -> None:
    gateway, port = await doors.open(held_bytes=6 * MIB)
    worker = await doors.worker()
    slow = await doors.greeted(port)
    await slow.send(Packet(kind=Kind.DECLARE, number=1, text=OWN.name))
    await slow.packet()
    for _ in range(16):
        await worker.publish(OWN.name, bytes(MIB), to_queue=True)
    slow.socket._response.connection.transport.pause_reading()  # type: ignore[union-attr]
    await slow.send(Packet(kind=Kind.SUBSCRIBE, number=2, argument=16, text=OWN.name))
    await until(lambda: gateway.devices == 0)
    assert gateway.budgets.held.total == 0


# The ends -------------------------------------------------------------------------------------------------


async def test_a_gateway_that_stops_tells_its_devices_and_confirms_what_came(doors: Doors) -> None:
    gateway, port = await doors.open()
    await doors.worker()
    device = await doors.device(port)
    await device.publish(KEY, b"x")
    await gateway.stop()
    await device.wait_lost()
    assert "stops" in str(device.lost)
    with pytest.raises(LinkDeferred, match="503"):
        await doors.device(port)


async def test_a_device_is_silent_for_so_long_and_no_longer(doors: Doors) -> None:
    gateway, port = await doors.open(silence_s=1.0, ping_s=60.0)
    proxy = await doors._stack.enter_async_context(Proxy(port))
    device = await doors.device(proxy.port)
    proxy.stall()
    await until(lambda: gateway.devices == 0)
    await device.close()


async def test_a_gateway_that_falls_silent_is_given_up(doors: Doors) -> None:
    _, port = await doors.open()
    proxy = await doors._stack.enter_async_context(Proxy(port))
    device = await doors.device(proxy.port)
    device._silence_s = 1.0  # type: ignore[attr-defined]
    proxy.stall()
    await device.wait_lost()
    assert "nothing came" in str(device.lost)


async def test_a_lost_broker_is_told_to_the_device(doors: Doors) -> None:
    transports: list[Any] = []

    async def upstream(account: str, _: str) -> Transport:
        transports.append(doors.broker.connect(account))
        return transports[-1]  # type: ignore[no-any-return]

    gateway = Gateway(upstream)
    async with serve(gateway, host=HOST, port=0) as port:
        device = await doors.device(port)
        doors.broker.drop(transports[0])
        await device.wait_lost()
        assert "lost its connection to the broker" in str(device.lost)


async def test_tls_and_who_is_trusted(doors: Doors, tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files.certificate, files.key)
    gateway, port = await doors.open(tls=tls, authenticate_s=1.0)
    account = f"{DEVICE}:{PASSWORD}@localhost:{port}"
    device = await broker.connect(f"wss://{account}?cafile={files.ca}")
    assert device.principal == DEVICE
    await device.close()
    with pytest.raises(LinkRefused, match="not trusted"):
        await broker.connect(f"wss://{account}")
    with pytest.raises(LinkRefused, match="no such file"):
        await broker.connect(f"wss://{account}?cafile=/no/file")
    with pytest.raises(LinkError):
        await broker.connect(f"ws://{account}")
    await until(lambda: gateway.admission.visits == 0)


@pytest.mark.parametrize(
    ("url", "kind", "says"),
    [
        ("ws://phone-1@127.0.0.1:1", LinkRefused, "names no account and password"),
        ("ws://phone-1:p@ss@127.0.0.1:1/x@y", LinkRefused, "quoted"),
        ("ws://phone-1:secret@127.0.0.1:{closed}", LinkError, "connection refused"),
        ("ws://phone-1:secret@no-such-host.invalid", LinkError, "is unknown"),
        ("wss://phone-1:secret@127.0.0.1:1?cadata=abc", LinkRefused, "can't be used"),
    ],
)
async def test_what_is_wrong_with_a_url_is_said_without_its_password(
    no_loop_errors: None, url: str, kind: type[LinkError], says: str
) -> None:
    (closed,) = free_ports(1)
    with pytest.raises(LinkError) as caught:
        await broker.connect(url.format(closed=closed))
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_every_metric_is_in_the_documents() -> None:
    text = (Path(__file__).parents[2] / "docs/gateway.md").read_text()
    assert [metric.name for metric in metrics.ALL if f"`{metric.name}`" not in text] == []


def test_every_kind_of_packet_is_in_the_documents() -> None:
    text = (Path(__file__).parents[2] / "docs/gateway.md").read_text()
    assert [kind.name for kind in Kind if f"| {kind.value} {kind.name} |" not in text] == []


# Before RabbitMQ --------------------------------------------------------------------------------------------


@pytest.mark.rabbitmq
async def test_what_the_broker_says_of_an_account_reaches_the_device(
    rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, no_loop_errors: None
) -> None:
    url = rabbitmq_broker.node.url(rabbitmq_vhost)
    rabbitmq_broker.account_url(rabbitmq_vhost, DEVICE)
    async with asyncio.timeout(60), serve(Gateway(broker_upstream(url)), host=HOST, port=0) as port:
        with pytest.raises(AccountRefused):
            await broker.connect(f"ws://{DEVICE}:wrong@{HOST}:{port}")
        device = await broker.connect(f"ws://{DEVICE}:{PASSWORD}@{HOST}:{port}")
        await asyncio.to_thread(rabbitmq_broker.call, "DELETE", f"users/{DEVICE}")
        await device.wait_lost()
        assert type(device.lost) is AccountGone
        await device.close()
    (closed,) = free_ports(1)
    gateway = Gateway(broker_upstream(f"amqp://{HOST}:{closed}/"))
    async with serve(gateway, host=HOST, port=0) as port:
        with pytest.raises(LinkError, match="can't reach its broker") as caught:
            await broker.connect(f"ws://{DEVICE}:{PASSWORD}@{HOST}:{port}")
        assert caught.value.retriable
        assert str(closed) not in str(caught.value), "where the broker is, is not told to strangers"
