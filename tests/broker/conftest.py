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
from broker.transport.base import Transport
from broker.transport.in_process import MemoryBroker, MemoryTransport
from tests.broker.proxy import Proxy
from tests.fixtures_rabbitmq import RabbitBroker

DELIVERY_LIMIT = 2


class Hub(Protocol):
    """One broker for one test. `connect` gives a new connection of the account; `cut` loses its network."""

    async def connect(self, principal: str) -> Transport: ...

    def cut(self, transport: Transport) -> None: ...


class MemoryHub:
    def __init__(self) -> None:
        self._broker = MemoryBroker(delivery_limit=DELIVERY_LIMIT)

    async def connect(self, principal: str) -> Transport:
        return self._broker.connect(principal)

    def cut(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        self._broker.drop(transport)


class RabbitHub:
    def __init__(self, broker: RabbitBroker, vhost: str, stack: AsyncExitStack) -> None:
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


@pytest.fixture
async def rabbit(
    rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, no_loop_errors: None
) -> AsyncIterator[RabbitHub]:
    async with AsyncExitStack() as stack:
        yield RabbitHub(rabbitmq_broker, rabbitmq_vhost, stack)


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
async def hub(request: pytest.FixtureRequest, no_loop_errors: None) -> AsyncIterator[Hub]:
    if request.param == "memory":
        yield MemoryHub()
        return
    broker: RabbitBroker = request.getfixturevalue("rabbitmq_broker")
    vhost: str = request.getfixturevalue("rabbitmq_vhost")
    async with AsyncExitStack() as stack:
        yield RabbitHub(broker, vhost, stack)


@pytest.fixture
async def no_loop_errors() -> AsyncIterator[None]:
    """Fails a test in whose background something failed unseen (asyncio would only log it)."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    yield
    gc.collect()  # what nobody looked at is told when it is collected
    assert failures == []
