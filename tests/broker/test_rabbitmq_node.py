"""The node that tests and the local stack run: its errors, its end, and what others can see of it."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from broker import connect
from deploy.nodes.native import HOST, is_free
from deploy.nodes.rabbitmq import RabbitNode
from deploy.stack.daemons import start_time
from spliteasy.errors import UserError
from tests.fixtures_rabbitmq import RabbitBroker, free_ports

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RabbitNode]:
    """A node that is not started."""
    port, dist_port, epmd_port = free_ports(3)
    node = RabbitNode(
        folder=tmp_path / "node", port=port, dist_port=dist_port, epmd_port=epmd_port, password="tests-only"
    )
    yield node
    node.kill()


def pids(node: RabbitNode) -> list[int]:
    return [
        int((node.folder / "run" / f"{name}.pid").read_text().split()[0]) for name in ("rabbitmq", "epmd")
    ]


def listening(pid: int) -> set[str]:
    """The addresses, in the kernel's hexadecimal, that the process listens on."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].rpartition(":")[0])
    return found


def test_only_this_machine_can_reach_it_and_only_its_owner_can_read_its_secrets(
    rabbitmq_broker: RabbitBroker,
) -> None:
    node = rabbitmq_broker.node
    loopback = {"0100007F", "00000000000000000000000001000000"}
    for pid in pids(node):
        addresses = listening(pid)
        assert addresses
        assert addresses <= loopback
    for secret in ("rabbitmq.conf", "home/.erlang.cookie"):
        assert stat.S_IMODE((node.folder / secret).stat().st_mode) & 0o077 == 0
    command_line = Path(f"/proc/{pids(node)[0]}/cmdline").read_text()
    assert node.password not in command_line


def test_quorum_queues_hand_on_what_is_written_and_check_no_sums(rabbitmq_broker: RabbitBroker) -> None:
    names = ("segment_compute_checksums", "wal_compute_checksums", "wal_write_strategy")
    values = rabbitmq_broker.node.ctl(
        "eval", f"[maps:get(N, ra_system:fetch(quorum_queues)) || N <- [{', '.join(names)}]]."
    )
    assert values.strip() == "[false,false,sync_after_notify]"


def test_starting_a_running_node_is_harmless(rabbitmq_broker: RabbitBroker) -> None:
    before = pids(rabbitmq_broker.node)
    rabbitmq_broker.node.start()
    assert pids(rabbitmq_broker.node) == before


async def test_it_stops_with_its_epmd_and_comes_back_with_its_state(node: RabbitNode) -> None:
    node.start()
    running = pids(node)
    node.ctl("add_vhost", "kept")
    node.stop()
    assert not node.running
    assert all(start_time(pid) is None for pid in running)
    assert all(is_free(port) for port in (node.port, node.dist_port, node.epmd_port))
    node.stop()
    node.start()
    assert "kept" in node.ctl("list_vhosts").split()
    transport = await connect(node.url())
    await transport.close()


@pytest.mark.parametrize("which", ["port", "dist_port", "epmd_port"])
def test_a_taken_port_is_named_and_nothing_is_started(node: RabbitNode, which: str) -> None:
    with closing(socket.socket()) as other:
        other.bind((HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {taken} .* in use"):
            replace(node, **{which: taken}).start()
    assert not node.running


def test_a_node_that_can_not_boot_tells_why_and_leaves_nothing_running(node: RabbitNode) -> None:
    node.folder.mkdir()
    (node.folder / "data").write_text("a file where the folder of its state should be")
    with pytest.raises(UserError, match="stopped while starting"):
        node.start()
    assert not node.running
    assert is_free(node.epmd_port)


def test_without_rabbitmq_it_says_how_to_get_it(node: RabbitNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="not installed") as caught:
        node.start()
    assert "make deps" in str(caught.value)


def test_a_failing_rabbitmqctl_is_one_line(rabbitmq_broker: RabbitBroker) -> None:
    with pytest.raises(UserError, match="rabbitmqctl delete_vhost failed") as caught:
        rabbitmq_broker.node.ctl("delete_vhost", "nowhere")
    assert "\n" not in str(caught.value)


def test_urls_quote_what_must_be_quoted(node: RabbitNode) -> None:
    odd = replace(node, user="a b", password="p@ss/:")
    assert odd.url("x/y") == f"amqp://a%20b:p%40ss%2F%3A@127.0.0.1:{node.port}/x%2Fy"
    assert odd.url() == f"amqp://a%20b:p%40ss%2F%3A@127.0.0.1:{node.port}/"
