"""The files that are prepared for containers work on a RabbitMQ and a Redis without containers too."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker import connect
from broker.transport.topology import DEFAULT_SHARDS, worker_queues
from deploy.accounts import Accounts
from deploy.nodes.certificates import make_certificates
from deploy.nodes.native import HOST
from deploy.nodes.rabbitmq import RabbitNode
from deploy.nodes.redis_server import find_binary
from deploy.prepare import main
from deploy.stack.daemons import Daemon
from server_worker.store import open_store
from spliteasy_cli.commands.keys import store_keys
from tests.fixtures_rabbitmq import free_ports, new_node

ROOT = Path(__file__).resolve().parents[2]
CONTAINERS = ROOT / "deploy/containers"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOfOnesOwn(RabbitNode):
    """A node with the configuration for containers; only paths and ports are this machine's."""

    prepared: Path

    def _write_configuration(self) -> None:
        super(NodeOfOnesOwn, self)._write_configuration()
        text = (CONTAINERS / "rabbitmq.conf").read_text()
        text = text.replace("/etc/rabbitmq/tls", str(self.prepared / "secrets/tls"))
        text = text.replace("/etc/rabbitmq/definitions.json", str(self.prepared / "secrets/definitions.json"))
        text = text.replace("= 5671", f"= {HOST}:{self.port}").replace("= 15671", f"= {self.management_port}")
        text = text.replace("= 1GB", "= 50MB")
        (self.folder / "rabbitmq.conf").write_text(text)


def environment(prepared: Path, who: str, ports: dict[str, int]) -> dict[str, str]:
    """The settings for that account, with this machine's names and ports."""
    text = (prepared / f"secrets/{who}.env").read_text().replace("'", "")
    text = text.replace("/etc/spliteasy/ca.pem", str(prepared / "secrets/tls/ca.pem"))
    text = text.replace("/etc/spliteasy/store.key", str(prepared / "secrets/store.key"))
    text = re.sub(r"@[a-z0-9.-]+:(\d+)", lambda at: f"@{HOST}:{ports[at[1]]}", text)
    return dict(line.split("=", 1) for line in text.splitlines())  # type: ignore[arg-type]


@pytest.mark.rabbitmq
@pytest.mark.redis
async def test_workers_and_operators_come_in_with_what_was_prepared(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    assert main(["--out", str(prepared)]) == 0
    plain = new_node(tmp_path / "rabbitmq")
    fields = {
        name: getattr(plain, name)
        for name in ("folder", "port", "dist_port", "epmd_port", "management_port", "password")
    }
    node = NodeOfOnesOwn(**fields, tls=make_certificates(prepared / "secrets/tls"), prepared=prepared)
    (redis_port,) = free_ports(1)
    conf = (CONTAINERS / "redis.conf").read_text().replace("/etc/redis/tls", str(prepared / "secrets/tls"))
    conf = conf.replace("/etc/redis/users.acl", str(prepared / "secrets/users.acl"))
    conf = conf.replace("dir /data", f"dir {tmp_path}").replace("6379", str(redis_port))
    (tmp_path / "redis.conf").write_text(f"{conf}bind {HOST}\n")
    redis = Daemon("redis", tmp_path)
    ports = {"5671": node.port, "15671": node.management_port or 0, "6379": redis_port}
    redis.start([find_binary(), str(tmp_path / "redis.conf")], {})
    node.start()
    try:
        worker, operator = (environment(prepared, who, ports) for who in ("worker", "operator"))
        transport = await connect(worker["SPLITEASY_BROKER"])
        await transport.declare(*worker_queues(DEFAULT_SHARDS))
        await transport.close()
        for settings in (worker, operator):
            key_file = settings.get("SPLITEASY_STORE_KEY")
            keys = store_keys(Path(key_file) if key_file else None, settings["SPLITEASY_STORE"])
            assert (len(keys.keys), keys.open_too) == ((1, False) if settings is worker else (0, True))
            store = await open_store(settings["SPLITEASY_STORE"], keys)
            assert store.loss_window_s == 2.0
            assert await store.sessions() == []
            await store.close()
        (account,) = Accounts(operator["SPLITEASY_MANAGEMENT"]).list()
        assert account.name == "workers"
        queues = node.ctl("list_queues", "name", "durable", "auto_delete", "--no-table-headers").splitlines()
        assert len(queues) == 18
        assert all(line.split("\t")[1:] == ["true", "false"] for line in queues), "4.x denies others"
    finally:
        node.kill()
        redis.ask_to_stop()
        redis.wait_stopped(20)


def test_twice_changes_nothing_and_all_of_it_is_private(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path), "--host", "broker.example"]) == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["--out", str(tmp_path)]) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    passwords = json.loads((tmp_path / "secrets/passwords.json").read_text())
    assert len(set(passwords.values())) == 4
    for path in files:
        if path.suffix not in (".pem", ".csr", ".cnf", ".srl"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    key = (tmp_path / "secrets/store.key").read_text().strip()
    assert [path.name for path, text in files.items() if key.encode() in text] == ["store.key"]
    said = capsys.readouterr()
    assert key not in said.out + said.err
    for secret in passwords.values():
        holders = {path.name for path, text in files.items() if secret.encode() in text}
        assert holders <= {"passwords.json", "worker.env", "account.env", "operator.env"}
        assert secret not in said.out + said.err
    assert (tmp_path / ".env").read_text() == f"SPLITEASY_USER={os.getuid()}:{os.getgid()}\n"
