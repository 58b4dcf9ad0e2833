"""Prepare containers for their first start: passwords, certificates and accounts, in files of this user.

    python -m deploy.prepare [--out FOLDER] [--host NAME ...]

Writes, mode 0600 and only where it is missing, so that twice is harmless:

    .env                      whose user the containers run as
    secrets/tls/              an authority, and a certificate of broker and store
    secrets/passwords.json    the one place with all passwords
    secrets/definitions.json  RabbitMQ's accounts, as hashes, and their permissions
    secrets/users.acl         Redis's users, as hashes
    secrets/worker.env        where broker and store are, with the workers' accounts
    secrets/account.env       the workers' account alone, for a secret of Kubernetes
    secrets/store.key         what workers seal requests and snapshots with; the store does not have it
    secrets/operator.env      the same for `spliteasy` on this machine: `set -a; . secrets/operator.env`
    data/                     where the containers keep their state
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from broker.transport.topology import UPLINK
from deploy.accounts import REPLY_POLICY, Role, password_hash, reply_policy, worker_permissions
from deploy.nodes.certificates import HOSTS, make_certificates
from deploy.nodes.native import write_private
from deploy.nodes.redis_users import LOSS_WINDOW, NOBODY, RedisRole, RedisUser
from spliteasy.errors import SplitEasyError

OUT = Path(__file__).with_name("containers")
OPERATOR, WORKERS = "operator", "workers"
CA_INSIDE = "/etc/spliteasy/ca.pem"
"""The path of the authority's certificate in a worker's container."""

STORE_KEY_INSIDE = "/etc/spliteasy/store.key"
"""The path of the store's key in a worker's container."""

LOSS_WINDOW_S = 2
"""The loss window of `appendfsync everysec`, which redis.conf sets."""

AMQPS_PORT, MANAGEMENT_PORT, REDIS_PORT = 5671, 15671, 6379


def prepare(out: Path, *, broker: str = "rabbitmq", store: str = "redis", hosts: Sequence[str] = ()) -> None:
    """Write what is missing. `broker` and `store` are the names that workers reach them by, `hosts` those
    that devices use. Raises UserError where the `openssl` command is missing.
    """
    folder = out / "secrets"
    for each in (folder, *(out / "data" / name for name in ("rabbitmq", "redis", "prometheus", "grafana"))):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    tls = make_certificates(folder / "tls", hosts=(*HOSTS, broker, store, *hosts))
    _once(folder / "passwords.json", json.dumps({name: secrets.token_urlsafe(24) for name in _WHO}))
    passwords: dict[str, str] = json.loads((folder / "passwords.json").read_text())
    _once(out / ".env", f"SPLITEASY_USER={os.getuid()}:{os.getgid()}\n")
    _once(folder / "definitions.json", json.dumps(definitions(passwords), indent=2))
    _once(folder / "users.acl", "".join(f"user {line}\n" for line in users(passwords)))
    _once(folder / "store.key", f"{secrets.token_hex(32)}\n")
    inside = urls(WORKERS, passwords, broker=broker, store=store, ca=CA_INSIDE)
    _once(folder / "worker.env", _lines({**inside, "SPLITEASY_STORE_KEY": STORE_KEY_INSIDE}))
    _once(folder / "account.env", _lines({"username": WORKERS, "password": passwords["workers-broker"]}))
    own = urls(OPERATOR, passwords, broker="127.0.0.1", store="127.0.0.1", ca=str(tls.ca))
    _once(folder / "operator.env", _lines({name: f"'{url}'" for name, url in own.items()}))


_WHO = ("operator-broker", "operator-store", "workers-broker", "workers-store")


def definitions(passwords: Mapping[str, str]) -> dict[str, Any]:
    """Return what RabbitMQ loads at start: an operator, the workers, and the policy of reply queues."""
    workers = worker_permissions()
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    may = {"configure": workers.configure, "write": workers.write, "read": workers.read}
    return {
        "vhosts": [{"name": "/"}],
        "users": [
            _user(OPERATOR, passwords["operator-broker"], "administrator"),
            _user(WORKERS, passwords["workers-broker"], Role.WORKER.value),
        ],
        "permissions": [
            {"user": OPERATOR, "vhost": "/", **everything},
            {"user": WORKERS, "vhost": "/", **may},
        ],
        "topic_permissions": [
            {"user": WORKERS, "vhost": "/", "exchange": UPLINK, "write": workers.uplink_keys, "read": ".*"}
        ],
        "policies": [{"vhost": "/", "name": REPLY_POLICY, "priority": 0, **reply_policy()}],
    }


def users(passwords: Mapping[str, str]) -> list[str]:
    """Redis's users, a line each."""
    named = (
        RedisUser(name=OPERATOR, password=passwords["operator-store"], role=RedisRole.OPERATOR),
        RedisUser(name=WORKERS, password=passwords["workers-store"], role=RedisRole.WORKER),
    )
    return [NOBODY, *(user.line for user in named)]


def urls(who: str, passwords: Mapping[str, str], *, broker: str, store: str, ca: str) -> dict[str, str]:
    """Return the URLs of broker and store for that account, as `spliteasy` reads them from its
    environment."""
    to_broker, to_store = (passwords[f"{who}-{what}"] for what in ("broker", "store"))
    at = quote(ca)
    said = {
        "SPLITEASY_BROKER": f"amqps://{who}:{to_broker}@{broker}:{AMQPS_PORT}/?cafile={at}",
        "SPLITEASY_STORE": f"rediss://{who}:{to_store}@{store}:{REDIS_PORT}/0"
        f"?ssl_ca_certs={at}&{LOSS_WINDOW}={LOSS_WINDOW_S}",
    }
    if who == OPERATOR:
        said["SPLITEASY_MANAGEMENT"] = f"https://{who}:{to_broker}@{broker}:{MANAGEMENT_PORT}?cafile={at}"
    return said


def _user(name: str, password: str, tag: str) -> dict[str, Any]:
    hashed = {"password_hash": password_hash(password), "hashing_algorithm": "rabbit_password_hashing_sha256"}
    return {"name": name, "tags": [tag], **hashed}


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _once(file: Path, text: str) -> None:
    if not file.exists():
        write_private(file, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.prepare", description="Passwords, certificates and accounts for containers."
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="by default beside deploy/containers/compose.yaml"
    )
    parser.add_argument("--broker", default="rabbitmq", metavar="NAME", help="the broker's name for workers")
    parser.add_argument("--store", default="redis", metavar="NAME", help="the store's name for workers")
    parser.add_argument("--host", action="append", default=[], metavar="NAME", help="a name that devices use")
    asked = parser.parse_args(argv)
    try:
        prepare(asked.out, broker=asked.broker, store=asked.store, hosts=asked.host)
    except (SplitEasyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"prepared: {asked.out}/.env and {asked.out}/secrets; keep both where nobody else reads them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
