"""A real RabbitMQ for tests: one node a session, a virtual host of its own a test; and nodes to break."""

from __future__ import annotations

import json
import socket
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from deploy.nodes.native import HOST
from deploy.nodes.rabbitmq import RabbitNode

PASSWORD = "tests-only"


@dataclass(frozen=True, kw_only=True)
class RabbitBroker:
    """A running node, and its HTTP interface for what AMQP can't do."""

    node: RabbitNode
    _numbers: Iterator[int] = field(default_factory=count)

    def new_vhost(self) -> str:
        """A fresh virtual host's name."""
        name = f"test-{next(self._numbers)}"
        self.call("PUT", f"vhosts/{name}")
        self.permit(name, self.node.user)
        return name

    def delete_vhost(self, vhost: str) -> None:
        """Delete the virtual host with all that is in it, connections included, and every account that its
        test made."""
        self.call("DELETE", f"vhosts/{vhost}")
        for user in self.call("GET", "users?columns=name"):
            if user["name"] != self.node.user:
                self.call("DELETE", f"users/{quote(user['name'], safe='')}")

    def permit(
        self, vhost: str, user: str, *, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        self.call(
            "PUT", f"permissions/{vhost}/{user}", {"configure": configure, "write": write, "read": read}
        )

    def permit_topics(self, vhost: str, user: str, *, exchange: str, write: str) -> None:
        self.call(
            "PUT", f"topic-permissions/{vhost}/{user}", {"exchange": exchange, "write": write, "read": ".*"}
        )

    def account_url(self, vhost: str, user: str) -> str:
        """The URL of an account that is made, permitted all in the virtual host."""
        self.call("PUT", f"users/{user}", {"password": PASSWORD, "tags": ""})
        self.permit(vhost, user)
        return replace(self.node, user=user, password=PASSWORD).url(vhost)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask the HTTP interface; names in `path` are percent-encoded."""
        account = b64encode(f"{self.node.user}:{self.node.password}".encode()).decode()
        request = urllib.request.Request(
            f"http://{HOST}:{self.node.management_port}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {account}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None


def free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def new_node(folder: Path) -> RabbitNode:
    """A node on free ports, with the management plugin; not started."""
    port, dist_port, epmd_port, management_port = free_ports(4)
    return RabbitNode(
        folder=folder,
        port=port,
        dist_port=dist_port,
        epmd_port=epmd_port,
        management_port=management_port,
        password=PASSWORD,
    )


def _running(folder: Path) -> Iterator[RabbitBroker]:
    node = new_node(folder)
    node.start()
    try:
        yield RabbitBroker(node=node)
    finally:
        node.kill()


@pytest.fixture(scope="session")
def rabbitmq_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitBroker]:
    """The session's node. Leave it running."""
    yield from _running(tmp_path_factory.mktemp("rabbitmq"))


@pytest.fixture
def rabbitmq_vhost(rabbitmq_broker: RabbitBroker) -> Iterator[str]:
    """A virtual host of the session's node for one test."""
    vhost = rabbitmq_broker.new_vhost()
    yield vhost
    rabbitmq_broker.delete_vhost(vhost)


@pytest.fixture
def rabbitmq_url(rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str) -> str:
    """A URL into a virtual host for one test."""
    return rabbitmq_broker.node.url(rabbitmq_vhost)


@pytest.fixture
def own_rabbitmq(tmp_path: Path) -> Iterator[RabbitBroker]:
    """A node for one test to kill, stop and restart."""
    yield from _running(tmp_path / "rabbitmq")
