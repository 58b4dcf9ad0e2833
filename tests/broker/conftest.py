"""The brokers that the transport contract runs against."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest

from broker.amqp.connection import AmqpTransport
from broker.amqp.connection import connect as connect_amqp
from broker.amqp.options import AmqpOptions
from broker.gateway.client import connect as connect_gateway
from broker.gateway.limits import GatewayLimits
from broker.gateway.server import Gateway, serve
from broker.gateway.upstream import Upstream, broker_upstream, in_process_upstream
from broker.transport import topology
from broker.transport.base import Depth, Transport
from broker.transport.in_process import MemoryBroker, MemoryTransport
from tests.broker.proxy import Proxy
from tests.fixtures_rabbitmq import PASSWORD, RabbitBroker

DELIVERY_LIMIT = 2
HUBS = [
    "memory",
    pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
    "classic-memory",
    pytest.param("classic-rabbitmq", marks=pytest.mark.rabbitmq),
    "gateway-memory",
    pytest.param("gateway-rabbitmq", marks=pytest.mark.rabbitmq),
]


class Hub(Protocol):
    """One broker for one test. `connect` gives a new connection of the account; `cut` loses its network."""

    kind: topology.QueueType
    """The type of the workers' queues."""

    async def connect(self, principal: str) -> Transport: ...

    def cut(self, transport: Transport) -> None: ...


class Lane:
    """One queue with who reads it, and who writes into it."""

    def __init__(self, hub: Hub, *, to_device: bool) -> None:
        self._hub = hub
        self._to_device = to_device
        self.queue = topology.reply_slot("phone-1", 3) if to_device else topology.shard_queue(3, hub.kind)
        self._writer: Transport | None = None

    async def reader(self) -> Transport:
        """A new connection of the reader, which has declared the queue."""
        transport = await self._hub.connect("phone-1" if self._to_device else "worker-1")
        await transport.declare(self.queue)
        return transport

    async def writer(self) -> Transport:
        """The one connection of the writer, which may do more than write."""
        if self._writer is None:
            self._writer = await self._hub.connect("worker-2")
        return self._writer

    async def put(self, *frames: bytes) -> None:
        """Write frames into the queue, one after the other."""
        writer = await self.writer()
        for frame in frames:
            target = self.queue.name if self._to_device else topology.uplink_key("phone-1", 3)
            await writer.publish(target, frame, to_queue=self._to_device)

    async def refill(self, number: int) -> list[bytes]:
        """Write so many frames that differ."""
        frames = [b"frame %d" % index for index in range(number)]
        await self.put(*frames)
        return frames

    async def depth(self) -> Depth | None:
        return await (await self.writer()).depth(self.queue.name)

    def cut(self, transport: Transport) -> None:
        self._hub.cut(transport)


class MemoryHub:
    """Everybody on the in-process broker."""

    def __init__(self, kind: topology.QueueType = topology.QueueType.QUORUM) -> None:
        self.kind = kind
        self._broker = MemoryBroker(delivery_limit=DELIVERY_LIMIT)
        self._passwords: dict[str, str] = {}

    async def connect(self, principal: str) -> Transport:
        return self._broker.connect(principal)

    def cut(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        self._broker.drop(transport)

    def enroll(self, device: str) -> None:
        self._passwords[device] = PASSWORD

    def upstream(self) -> Upstream:
        return in_process_upstream(self._broker, self._passwords)


class RabbitHub:
    """Everybody on RabbitMQ, each connection through a proxy."""

    def __init__(
        self,
        broker: RabbitBroker,
        vhost: str,
        stack: AsyncExitStack,
        kind: topology.QueueType = topology.QueueType.QUORUM,
    ) -> None:
        self.kind = kind
        self._broker = broker
        self._vhost = vhost
        self._stack = stack
        self._proxies: dict[int, Proxy] = {}

    async def connect(self, principal: str, **options: Any) -> AmqpTransport:
        proxy = await self._stack.enter_async_context(Proxy(self._broker.node.port))
        parts = urlsplit(self._broker.account_url(self._vhost, principal))
        url = parts._replace(netloc=parts.netloc.replace(str(parts.port), str(proxy.port))).geturl()
        settings = AmqpOptions(**{"delivery_limit": DELIVERY_LIMIT, "close_timeout_s": 2.0, **options})
        transport = await connect_amqp(url, options=settings)
        self._stack.push_async_callback(transport.close)
        self._proxies[id(transport)] = proxy
        return transport

    def proxy(self, transport: Transport) -> Proxy:
        return self._proxies[id(transport)]

    def cut(self, transport: Transport) -> None:
        self.proxy(transport).cut()

    def enroll(self, device: str) -> None:
        self._broker.account_url(self._vhost, device)

    def upstream(self) -> Upstream:
        return broker_upstream(self._broker.node.url(self._vhost))


class GatewayHub:
    """Devices behind a gateway, each connection through a proxy; all others on the broker itself."""

    def __init__(self, direct: MemoryHub | RabbitHub, port: int, stack: AsyncExitStack) -> None:
        self.kind = direct.kind
        self._direct = direct
        self._port = port
        self._stack = stack
        self._proxies: dict[int, Proxy] = {}

    async def connect(self, principal: str) -> Transport:
        if not principal.startswith("phone-"):
            return await self._direct.connect(principal)
        self._direct.enroll(principal)
        proxy = await self._stack.enter_async_context(Proxy(self._port))
        transport = await connect_gateway(f"ws://{principal}:{PASSWORD}@127.0.0.1:{proxy.port}")
        self._stack.push_async_callback(transport.close)
        self._proxies[id(transport)] = proxy
        return transport

    def cut(self, transport: Transport) -> None:
        self._proxies[id(transport)].cut()


async def _gateway(direct: MemoryHub | RabbitHub, stack: AsyncExitStack) -> GatewayHub:
    """A hub with a gateway of its own, which takes frames as large as the brokers do."""
    gateway = Gateway(direct.upstream(), limits=GatewayLimits(frame_bytes=16 << 20, drain_s=1.0))
    port = await stack.enter_async_context(serve(gateway, host="127.0.0.1", port=0))
    return GatewayHub(direct, port, stack)


@pytest.fixture
async def rabbit(
    rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, no_loop_errors: None
) -> AsyncIterator[RabbitHub]:
    async with AsyncExitStack() as stack:
        yield RabbitHub(rabbitmq_broker, rabbitmq_vhost, stack)


@pytest.fixture(params=HUBS[:4])
async def hub(request: pytest.FixtureRequest, no_loop_errors: None) -> AsyncIterator[Hub]:
    """The broker itself, which workers use, with queues of either type."""
    async with AsyncExitStack() as stack:
        yield _direct_hub(request, stack)


@pytest.fixture(params=HUBS)
async def any_hub(request: pytest.FixtureRequest, no_loop_errors: None) -> AsyncIterator[Hub]:
    """The broker itself, or a gateway before it for those who are called phone-….

    Tests of it do with a device's connection only what a device does.
    """
    async with AsyncExitStack() as stack:
        direct = _direct_hub(request, stack)
        yield await _gateway(direct, stack) if request.param.startswith("gateway") else direct


@pytest.fixture
def reading(any_hub: Hub) -> Lane:
    """What is read: a worker's queue on the broker itself, a device's reply queue behind a gateway."""
    return Lane(any_hub, to_device=isinstance(any_hub, GatewayHub))


def _direct_hub(request: pytest.FixtureRequest, stack: AsyncExitStack) -> MemoryHub | RabbitHub:
    classic = request.param.startswith("classic")
    kind = topology.QueueType.CLASSIC if classic else topology.QueueType.QUORUM
    if request.param.endswith("memory"):
        return MemoryHub(kind)
    broker: RabbitBroker = request.getfixturevalue("rabbitmq_broker")
    vhost: str = request.getfixturevalue("rabbitmq_vhost")
    return RabbitHub(broker, vhost, stack, kind)


@pytest.fixture
async def no_loop_errors() -> AsyncIterator[None]:
    """Fails a test in whose background something failed unseen (asyncio would only log it)."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    yield
    gc.collect()  # what nobody looked at is told when it is collected
    assert failures == []
