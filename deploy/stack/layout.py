"""The layout of the local stack: its folder, ports and passwords."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from deploy.nodes.certificates import make_certificates
from deploy.nodes.native import write_private
from deploy.stack.services import (
    PORT_VARIABLES,
    RABBITMQ,
    REDIS,
    Access,
    ComposeServices,
    NativeServices,
    Services,
    docker_answers,
    free_port,
    native_missing,
)
from spliteasy.errors import UserError

FOLDER = Path(".local")
STACK = FOLDER / "stack.json"
CERTIFICATES = FOLDER / "tls"
WORKERS = FOLDER / "workers.enrol"
"""The workers' account, where they do not share the operator's."""
SIGNING_KEY = FOLDER / "operator.key"
"""`submit` signs with it here, and `enroll` gives devices its public half."""
STORE_KEY = FOLDER / "store.key"
"""The key that the workers seal requests and snapshots with; Redis does not have it."""
QUEUES = FOLDER / "queues"
"""The type of queues that the stack was made with. An older stack has no such file, and quorum queues."""
PASSWORD, WORKER_PASSWORD = FOLDER / "password", FOLDER / "worker-password"
"""The passwords of the operator, and of the workers' user of Redis."""
AMQP_PORT = (PORT_VARIABLES[RABBITMQ], 5672)
REDIS_PORT = (PORT_VARIABLES[REDIS], 6379)
NOWHERE = Access(amqp_port=1, redis_port=1, management_port=1, password="-")  # noqa: S106
"""An access for stopping and deleting, which need to know neither ports nor password."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The stack as it is up, or is to be."""

    kind: str
    """`native` or `compose`."""
    access: Access

    @property
    def services(self) -> Services:
        if self.kind == "native":
            return NativeServices(FOLDER, self.access)
        return ComposeServices(self.access)

    @property
    def environment(self) -> dict[str, str]:
        """The environment that a command needs to find the stack."""
        return {"SPLITEASY_BROKER": self.access.broker, "SPLITEASY_STORE": self.access.store}

    def write(self) -> None:
        """Say in `stack.json` where it is."""
        write_private(
            STACK,
            json.dumps(
                {
                    "broker": self.access.broker,
                    "store": self.access.store,
                    "management": self.access.management,
                    "kind": self.kind,
                    "amqp_port": self.access.amqp_port,
                    "redis_port": self.access.redis_port,
                    "management_port": self.access.management_port,
                    "tls": self.access.tls is not None,
                },
                indent=2,
            ),
        )


def running_stack() -> Stack | None:
    """The stack as it was brought up; None where it is down."""
    try:
        stored = json.loads(STACK.read_text())
    except FileNotFoundError:
        return None
    # A stack of an older version may lack a port: it can still be stopped.
    ports = {name: stored.get(name, 1) for name in ("amqp_port", "redis_port", "management_port")}
    tls = make_certificates(CERTIFICATES) if stored.get("tls") else None
    access = Access(**ports, password=password(), worker_password=password(WORKER_PASSWORD), tls=tls)
    return Stack(stored["kind"], access)


def wanted_stack(*, tls: bool) -> Stack:
    """The stack that the environment asks for. Raises UserError where it can't be."""
    missing = native_missing()
    if missing and not docker_answers():
        raise UserError(
            f"{' and '.join(missing)} not installed, and no Docker daemon answers",
            hint="make deps installs them through apt",
        )
    if missing and tls:
        raise UserError(
            f"TLS needs native servers, and {' and '.join(missing)} are not installed",
            hint="make deps installs them through apt",
        )
    access = Access(
        amqp_port=port(*AMQP_PORT),
        redis_port=port(*REDIS_PORT),
        management_port=free_port(),
        password=password(),
        worker_password=password(WORKER_PASSWORD),
        tls=make_certificates(CERTIFICATES) if tls else None,
    )
    return Stack("compose" if missing else "native", access)


def check_same(access: Access, *, tls: bool) -> None:
    """Raises UserError where other ports are asked for than those it is up on, or TLS where there is none,
    and where an older version brought it up.
    """
    if access.management_port == NOWHERE.management_port:
        raise UserError("the local stack was brought up by an older version", hint="make down first")
    if tls and access.tls is None:
        raise UserError("the local stack is up without TLS", hint="make down first")
    for (variable, _), have in ((AMQP_PORT, access.amqp_port), (REDIS_PORT, access.redis_port)):
        if port(variable, have) != have:
            raise UserError(
                f"the local stack is up on port {have}, {variable} asks for {os.environ[variable]}",
                hint="make down first",
            )


def settle_queues(wanted: str | None, *, is_new: bool) -> str | None:
    """Return the type of queues for the stack's workers: one node needs no copies, so that a new stack has
    classic queues where nothing else is wanted. None: what the stack has. Raises UserError."""
    if is_new:
        QUEUES.write_text(wanted or "classic")
    found = QUEUES.read_text() if QUEUES.exists() else None
    if found is not None and wanted not in (None, found):
        raise UserError(
            f"this stack was made with {found} queues, not {wanted} ones",
            hint=f"make up, or make up QUEUES={found}; for {wanted} queues, make a new stack: make clean, "
            f"which deletes its state, then make up QUEUES={wanted}",
        )
    return wanted or found


def password(file: Path = PASSWORD) -> str:
    """Return a password of the stack: generated once, readable by this user only."""
    if not file.exists():
        write_private(file, secrets.token_urlsafe(24))
    return file.read_text()


def make_store_key(*, open_too: bool) -> None:
    """Make the key of the store where there is none, readable by this user only.

    `open_too`: what lies in the store in the open from before can still be read.
    """
    if not STORE_KEY.exists():
        lines = [secrets.token_hex(32), *(["open"] if open_too else [])]
        write_private(STORE_KEY, "".join(f"{line}\n" for line in lines))


def port(variable: str, default: int) -> int:
    """The port that the environment names. Raises UserError."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UserError(f"{variable}={text} is no port", hint="a number from 1 to 65535")
    return int(text)
