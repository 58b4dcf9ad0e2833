"""A Redis with a replica and three sentinels on loopback, whose primary can die with writes of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass

from deploy.nodes.native import HOST
from deploy.nodes.redis_server import RedisServer, find_binary
from deploy.stack.daemons import Daemon
from tests.fixtures_redis import ask_redis

NAME = "main"
SENTINELS, QUORUM = 3, 2
DOWN_AFTER_MS, FAILOVER_MS = 1000, 6000
FOLLOWS_S, POLL_S = 60.0, 0.05
REPLICATOR = "replicator"
PASSWORD = "tests-only"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedRedis(RedisServer):
    """The primary; `start` and `kill` are of all. Clients go by `url`, which names the sentinels."""

    replica_port: int
    sentinel_ports: tuple[int, ...]
    loss_window_s: float

    @property
    def url(self) -> str:
        places = ",".join(f"{HOST}:{port}" for port in self.sentinel_ports)
        return f"redis+sentinel://{places}/{NAME}/0?loss_window_s={self.loss_window_s:g}"

    @property
    def running(self) -> bool:
        return any(each.pid() is not None for each in (*self._sentinels(), Daemon("redis", self.folder)))

    @property
    def replica(self) -> RedisServer:
        """The server that follows the primary, until it takes over."""
        follows = {"replicaof": f"{HOST} {self.port}", "masteruser": REPLICATOR, "masterauth": PASSWORD}
        return RedisServer(
            folder=self.folder / "replica",
            port=self.replica_port,
            settings={**follows, "repl-diskless-sync-delay": "0", **_REPLICATOR},
        )

    def start(self, timeout_s: float = 60.0) -> None:
        """Start all, and wait until the replica follows and the sentinels know each other."""
        self.start_primary()
        self.replica.start(timeout_s)
        for number, port in enumerate(self.sentinel_ports):
            configuration = self.folder / f"sentinel-{number}.conf"
            configuration.write_text(
                f"port {port}\nbind {HOST}\ndir {self.folder.absolute()}\nprotected-mode no\n"
                f"sentinel monitor {NAME} {HOST} {self.port} {QUORUM}\n"
                f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {NAME} {FAILOVER_MS}\n"
            )
            self._sentinels()[number].start([find_binary(), str(configuration), "--sentinel"], {})
        deadline = time.monotonic() + FOLLOWS_S
        while not self._settled():
            assert time.monotonic() < deadline, "the sentinels never knew of all"
            time.sleep(POLL_S)

    def start_primary(self) -> None:
        """Start the first primary again; the sentinels make it follow another one, where there is."""
        RedisServer(
            folder=self.folder,
            port=self.port,
            settings={**self.settings, "repl-diskless-sync-delay": "0", **_REPLICATOR},
        ).start()

    def kill_primary(self) -> None:
        """SIGKILL to the first primary."""
        RedisServer(folder=self.folder, port=self.port).kill()

    def kill(self) -> None:
        for sentinel in self._sentinels():
            sentinel.ask_to_stop()
            sentinel.wait_stopped(0.0)
        self.kill_primary()
        self.replica.kill()

    def copied(self) -> bool:
        """Return once the replica has all that was written; whether it had in time."""
        return ask_redis(self, "WAIT", "1", "30000") == "1"

    def stop_copying(self) -> None:
        """From now on the replica gets nothing, and a failover loses what is written."""
        ask_redis(self, "ACL", "SETUSER", REPLICATOR, "off")
        ask_redis(self, "CLIENT", "KILL", "TYPE", "replica")

    def _settled(self) -> bool:
        """Return whether the replica follows, and each sentinel knows it and the other sentinels."""
        try:
            counts = [
                ask_redis(RedisServer(folder=self.folder, port=port), "SENTINEL", "CKQUORUM", NAME)
                for port in self.sentinel_ports
            ]
        except (AssertionError, OSError):
            return False
        return all(f"{SENTINELS} usable" in said for said in counts) and self.copied()

    def _sentinels(self) -> list[Daemon]:
        return [Daemon(f"sentinel-{number}", self.folder) for number in range(len(self.sentinel_ports))]


_REPLICATOR = {"user": f"{REPLICATOR} on >{PASSWORD} ~* &* +@all"}
