"""Users of a Redis server (7.0 or newer): what workers and operators may do there, and nothing else.

Both run the same commands, those that the store sends and those in its scripts; the keys differ: a worker
reads jobs and can't change one. Devices never reach the store. Lines for `redis.conf` or an ACL file hold
a hash of the password only.

    python -m deploy.nodes.redis_users worker     asks for a password on standard input, prints the line
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

COMMANDS = (
    "eval", "evalsha", "exists", "hdel", "hget", "hgetall", "hincrby", "hkeys", "hlen", "hmget", "hset",
    "hsetnx", "hvals",
    "info", "mget", "persist", "pexpire", "ping", "set", "time", "unlink", "zadd", "zcard",
    "zcount", "zlexcount", "zrange", "zrem", "zunionstore",
)  # fmt: skip
"""`auth` and `hello` are open to all."""

LOSS_WINDOW = "loss_window_s"
"""They may not ask how the server is configured (the answer has secrets), so that the URL has to say what
`appendfsync` means: 0 for always, 2 for everysec."""


class RedisRole(Enum):
    """The role of a user; the value is its patterns of keys."""

    WORKER = (
        "%R~spliteasy:allowed",
        "%R~spliteasy:jobs",
        "%R~spliteasy:{*@*}:*",
        "~spliteasy:fleet:{*@*}:*",
        "~spliteasy:{*.*}:*",
        "~spliteasy:due",
        "~spliteasy:names",
        "~spliteasy:sessions",
        "~spliteasy:stack",
        "~spliteasy:workers",
    )
    OPERATOR = ("~spliteasy:*",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisUser:
    """One user of the server."""

    name: str
    password: str
    role: RedisRole

    @property
    def line(self) -> str:
        """Return the user's line in an ACL file, behind the word `user`."""
        hashed = hashlib.sha256(self.password.encode()).hexdigest()
        allowed = " ".join(f"+{command}" for command in COMMANDS)
        return f"{self.name} reset on #{hashed} {' '.join(self.role.value)} {allowed}"


NOBODY = "default reset off"
"""This line keeps out clients that name no user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the line of one user."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.nodes.redis_users", description="One user's line of a Redis ACL file."
    )
    parser.add_argument("role", choices=[role.name.lower() for role in RedisRole])
    parser.add_argument("--name", help="by default as the role")
    asked = parser.parse_args(argv)
    password = sys.stdin.readline().strip()
    if len(password) < 16:
        print("error: a password of 16 letters or more is expected on standard input", file=sys.stderr)
        return 2
    user = RedisUser(name=asked.name or asked.role, password=password, role=RedisRole[asked.role.upper()])
    print(f"user {user.line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
