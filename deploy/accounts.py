"""Accounts on a RabbitMQ broker, made and ended by its management HTTP API (3.10 to 4.x).

This file alone says what the accounts of devices and workers may do. Passwords reach the broker as salted
hashes: only the caller keeps a copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import ssl
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from broker.transport.topology import DEAD, FRONT, REPLY_EXPIRES_S, UPLINK
from spliteasy.errors import LinkError, LinkRefused, UserError
from spliteasy.runtime.urls import QUOTE_HINT, split_url

TIMEOUT_S = 30.0
MAX_CONNECTIONS = 16
"""The connections of one device: two are in use, and those that a flaky link left are found dead after
seconds."""
MAX_CHANNELS = 128
REPLY_BYTES = 512 << 20
"""One reply queue may hold this much for a device that does not read it; the oldest messages go first."""
REPLY_POLICY = "spliteasy-replies"
REVOKE_TRIES = 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Role(Enum):
    """The role of an account. Its value is the account's tag on the broker, where it grants nothing."""

    DEVICE = "spliteasy-device"
    WORKER = "spliteasy-worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """Regular expressions over names of queues and exchanges."""

    configure: str
    write: str
    read: str
    uplink_keys: str
    """The routing keys that the account may publish to the uplink exchange with."""


def device_permissions(device: str) -> Permissions:
    """A device declares and reads its own reply queues, and publishes under its own key. Nothing else.

    The names of those queues are few (`broker.transport.topology.reply_slot`): RabbitMQ can't limit how many
    queues one account makes, nor of which type, so their names do.
    """
    own = rf"^spliteasy\.reply\.{device}\.0{{15}}[0-9a-f]$"
    return Permissions(configure=own, write=_names(UPLINK), read=own, uplink_keys=rf"^s\.{device}\.[^.]+$")


def worker_permissions() -> Permissions:
    """A worker declares and reads what devices publish to, and answers to queues by name.

    It declares reply queues too: so it finds, and deletes, those that are not as devices are to declare them.
    """
    queues = (DEAD, FRONT, r"spliteasy.shard.[0-9]{2,3}")
    replies = r"spliteasy.reply.[a-z0-9-]{1,63}.[0-9a-f]{16,64}"
    return Permissions(
        configure=_names(UPLINK, *queues, replies),
        write=_names("amq.default", *queues),
        read=_names(UPLINK, *queues),
        uplink_keys="^$",
    )


def reply_policy() -> dict[str, Any]:
    """Return the policy of all reply queues: they go without a reader, and hold a bounded number of bytes."""
    definition = {
        "expires": round(REPLY_EXPIRES_S * 1000),
        "max-length-bytes": REPLY_BYTES,
        "overflow": "drop-head",
    }
    return {"pattern": r"^spliteasy\.reply\.", "definition": definition, "apply-to": "queues"}


def _names(*names: str) -> str:
    return f"^({'|'.join(name.replace('.', chr(92) + '.') for name in names)})$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One of ours on the broker."""

    name: str
    role: Role
    connections: int
    """Open now, as far as the broker's statistics have come (some seconds)."""


class Accounts:
    """The accounts of one virtual host."""

    def __init__(self, url: str, *, vhost: str = "/") -> None:
        """`url`: `http(s)://operator:password@host:port`, with `?cafile=PATH` for an authority of your own.

        Raises UserError where it is none, or would send the operator's password over a network in the clear.
        """
        self._vhost = vhost
        hint = "https://operator:password@host:15671, the management API of RabbitMQ"
        try:
            parts = split_url(url)
            port = parts.port
        except ValueError as error:
            raise UserError(f"the management URL has {error}", hint=f"{hint}; {QUOTE_HINT}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("the management URL is not one of HTTP", hint=hint)
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise UserError("the management URL would send your password in the clear", hint=hint)
        self._host, self._port = parts.hostname, port or (15671 if parts.scheme == "https" else 15672)
        self._context = _tls_context(parts.query) if parts.scheme == "https" else None
        login = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        self._headers = {
            "Authorization": f"Basic {b64encode(login.encode()).decode()}",
            "Content-Type": "application/json",
        }

    def enroll(self, name: str, role: Role, password: str) -> bool:
        """Make the account, or give it this password; True where it is new. Open connections stay.

        Raises UserError where the name belongs to an account that is not of this role, and LinkError.
        """
        tags = self._tags(name)
        if tags is not None and role.value not in tags:
            raise UserError(
                f"{name} is an account of the broker already, and not one of a {role.name.lower()}",
                hint="choose another name",
            )
        self._call(
            "PUT",
            f"users/{name}",
            {
                "password_hash": password_hash(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": role.value,
            },
        )
        allowed = device_permissions(name) if role is Role.DEVICE else worker_permissions()
        vhost = quote(self._vhost, safe="")
        # Topics first: where none are set, all are allowed.
        self._call(
            "PUT",
            f"topic-permissions/{vhost}/{name}",
            {"exchange": UPLINK, "write": allowed.uplink_keys, "read": ".*" if role is Role.WORKER else "^$"},
        )
        if role is Role.DEVICE:
            self._call("PUT", f"user-limits/{name}/max-connections", {"value": MAX_CONNECTIONS})
            self._call("PUT", f"user-limits/{name}/max-channels", {"value": MAX_CHANNELS})
            self._bound_reply_queues(vhost)
        self._call(
            "PUT",
            f"permissions/{vhost}/{name}",
            {"configure": allowed.configure, "write": allowed.write, "read": allowed.read},
        )
        return tags is None

    def revoke(self, name: str) -> bool:
        """Delete the account with its permissions and its queues, and close its connections; False where
        there is none of ours, nor anything left of one.

        Raises LinkError where something of it is there still.
        """
        tags = self._tags(name)
        if tags is None and not self.left_of(name):
            return False
        if tags is not None and not any(role.value in tags for role in Role):
            return False
        self._call("DELETE", f"users/{name}")
        for _ in range(REVOKE_TRIES):
            # A connected client can make queues until it is cut off: look for them afterwards, and again.
            self._call("DELETE", f"connections/username/{name}")
            left = self.left_of(name)
            if not left:
                return True
            for path in left:
                self._call("DELETE", path)
        raise LinkError(
            f"{name} is revoked, but the broker still has {', '.join(left)[:200]}",
            hint="look at its connections and queues on the broker, and delete them",
        )

    def left_of(self, name: str) -> list[str]:
        """Return what the broker has under a device's name beside the account, as paths of the management
        API: queues of any type, exchanges, permissions."""
        vhost, prefix = quote(self._vhost, safe=""), f"spliteasy.reply.{name}."
        left = [
            f"{kind}/{vhost}/{quote(each['name'], safe='')}"
            for kind in ("queues", "exchanges")
            for each in self._call("GET", f"{kind}/{vhost}?columns=name") or []
            if each["name"].startswith(prefix)
        ]
        for kind in ("permissions", "topic-permissions"):
            if self._call("GET", f"{kind}/{vhost}/{name}"):
                left.append(f"{kind}/{vhost}/{name}")
        return left

    def list(self) -> list[Account]:
        """Devices and workers, by name."""
        connections = Counter(each.get("user") for each in self._call("GET", "connections?columns=user"))
        return [
            Account(name=user["name"], role=role, connections=connections[user["name"]])
            for user in sorted(self._call("GET", "users?columns=name,tags"), key=lambda user: user["name"])
            for role in Role
            if role.value in _as_tags(user["tags"])
        ]

    # Helpers ---------------------------------------------------------------------------------------

    def _tags(self, name: str) -> tuple[str, ...] | None:
        """The account's tags; None where there is none."""
        found = self._call("GET", f"users/{name}")
        return None if found is None else _as_tags(found["tags"])

    def _bound_reply_queues(self, vhost: str) -> None:
        """Devices declare their reply queues with whatever arguments they like: this holds for all."""
        self._call("PUT", f"policies/{vhost}/{REPLY_POLICY}", reply_policy())

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the answer's JSON; None where it has none. Raises LinkError, LinkRefused."""
        connection = (
            HTTPSConnection(self._host, self._port, timeout=TIMEOUT_S, context=self._context)
            if self._context
            else HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        )
        where = f"the management API at {self._host}:{self._port}"
        try:
            with closing(connection):
                connection.request(method, f"/api/{path}", json.dumps(body) if body else None, self._headers)
                answer = connection.getresponse()
                status, text = answer.status, answer.read()
        except ssl.SSLCertVerificationError as error:
            raise LinkRefused(
                f"the certificate of {where} is not trusted: {error.verify_message}",
                hint="give the right authority with ?cafile=PATH",
            ) from None
        except (OSError, HTTPException) as error:
            raise LinkError(
                f"{where} can't be reached: {_reason(error)}",
                hint="is the rabbitmq_management plugin enabled, and the port right?",
            ) from None
        if status in (401, 403):
            raise LinkRefused(f"{where} refused the account", hint="it takes an administrator of the broker")
        if status == 404:
            return None
        if status >= 400:
            reason = " ".join(text.decode(errors="replace").split())[:200]
            raise LinkRefused(f"{where} refused {method} {path.partition('?')[0]}: {reason}")
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise LinkRefused(f"{where} does not speak JSON", hint="check the URL") from None


def password_hash(password: str) -> str:
    """RabbitMQ's salted SHA-256 of a password."""
    salt = secrets.token_bytes(4)
    return b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _as_tags(tags: str | list[str]) -> tuple[str, ...]:
    """RabbitMQ before 3.9 gave them as one text."""
    return tuple(tags.split(",")) if isinstance(tags, str) else tuple(tags)


def _tls_context(query: str) -> ssl.SSLContext:
    cafile = parse_qs(query).get("cafile", [None])[0]
    try:
        context = ssl.create_default_context(cafile=cafile)
    except OSError as error:
        raise UserError(f"the authority's certificates in {cafile} can't be read: {_reason(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
