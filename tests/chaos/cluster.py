"""Three RabbitMQ nodes on this machine, joined into a cluster; clients come through a link that can move."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from deploy.nodes.native import HOST
from deploy.nodes.rabbitmq import START_S, RabbitNode, find_scripts
from deploy.stack.daemons import Daemon

NODES = 3
JOIN_S = 120.0
JOINING = ["cluster_formation.peer_discovery_backend = classic_config"] + [
    f"cluster_formation.classic_config.nodes.{number} = node{number}@localhost" for number in range(NODES)
]


class Cluster:
    """A RabbitMQ of three nodes, as a stack needs it. Its port and URL are those of the first node."""

    def __init__(self, folder: Path, *, ports: Iterator[int], password: str) -> None:
        self._folder = folder
        epmd_port = next(ports)
        self.nodes = [
            RabbitNode(
                folder=folder / f"node{number}",
                port=next(ports),
                dist_port=next(ports),
                epmd_port=epmd_port,
                password=password,
            )
            for number in range(NODES)
        ]

    @property
    def port(self) -> int:
        return self.nodes[0].port

    @property
    def running(self) -> bool:
        return any(self._daemon(number).pid() is not None for number in range(NODES))

    @property
    def pid(self) -> int | None:
        """The process id of the first node."""
        return self.nodes[0].pid

    def url(self, vhost: str = "/") -> str:
        return self.nodes[0].url(vhost)

    @property
    def urls(self) -> str:
        """The URL that names all nodes."""
        places = ",".join(f"{HOST}:{node.port}" for node in self.nodes)
        return self.url().replace(f"{HOST}:{self.port}", places)

    def start(self, timeout_s: float = START_S) -> None:
        """Start all, and wait until they know of each other."""
        scripts = find_scripts()
        for number, node in enumerate(self.nodes):
            node._write_configuration()
            with (node.folder / "rabbitmq.conf").open("a") as file:
                file.write("\n".join(JOINING) + "\n")
            if number:  # one secret for all
                (self._home(number) / ".erlang.cookie").unlink()
                os.link(self._home(0) / ".erlang.cookie", self._home(number) / ".erlang.cookie")
        self._epmd.start(
            ["epmd", "-address", HOST, "-port", str(self.nodes[0].epmd_port)], self._environment(0)
        )
        for number in range(NODES):
            self._daemon(number).start([str(scripts / "rabbitmq-server")], self._environment(number))
        for node in self.nodes:
            node.wait_until_serving(timeout_s)
        self.ctl("await_online_nodes", str(NODES))

    def kill_node(self, number: int) -> None:
        """SIGKILL to one node."""
        _kill(self._daemon(number))

    def start_node(self, number: int) -> None:
        """Start one that was killed, and wait until it is one of the cluster again, with its queues."""
        self._daemon(number).start([str(find_scripts() / "rabbitmq-server")], self._environment(number))
        self.nodes[number].wait_until_serving(JOIN_S)
        self.ctl("await_online_nodes", str(NODES))
        self.ctl("await_startup")

    def kill(self) -> None:
        for number in range(NODES):
            self.kill_node(number)
        _kill(self._epmd)

    def sync_queues(self) -> None:
        """Do nothing: no node comes back here."""

    def ctl(self, *arguments: str, timeout_s: float = JOIN_S) -> str:
        """Run rabbitmqctl against the first node."""
        run = subprocess.run(
            [str(find_scripts() / "rabbitmqctl"), "--quiet", *arguments],
            env={**os.environ, **self._environment(0)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        return run.stdout

    def leaders(self) -> list[str]:
        """The node that leads each quorum queue."""
        return self.ctl("list_queues", "leader").split()

    @property
    def _epmd(self) -> Daemon:
        return Daemon("epmd", self._folder)

    def _daemon(self, number: int) -> Daemon:
        return Daemon("rabbitmq", self.nodes[number].folder)

    def _home(self, number: int) -> Path:
        return self.nodes[number].folder / "home"

    def _environment(self, number: int) -> dict[str, str]:
        return {**self.nodes[number]._environment(), "RABBITMQ_NODENAME": f"node{number}@localhost"}


def _kill(daemon: Daemon) -> None:
    if (pid := daemon.pid()) is not None:
        os.kill(pid, signal.SIGKILL)
    daemon.wait_stopped(30.0)
