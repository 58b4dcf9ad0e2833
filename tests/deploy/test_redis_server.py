"""The Redis server of one's own: starts and stops cleanly, keeps its state, says what is wrong."""

from __future__ import annotations

import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.nodes.redis_server import RedisServer
from spliteasy.errors import UserError
from tests.fixtures_redis import StartRedis, ask_redis, free_port

pytestmark = pytest.mark.redis


def test_state_survives_a_stop_and_a_kill(start_redis: StartRedis) -> None:
    server = start_redis(password='a "quoted" \\ one/@')
    ask_redis(server, "SET", "key", "value")
    server.stop()
    assert not server.running
    server.stop()
    server.start()
    ask_redis(server, "SET", "other", "value")
    server.kill()
    assert not server.running
    server.start()
    assert ask_redis(server, "DBSIZE") == "2"


def test_starting_twice_is_one_server_also_for_another_process(start_redis: StartRedis) -> None:
    server = start_redis()
    pid = server.pid
    server.start()
    replace(server).start()
    assert replace(server).pid == pid


def test_nobody_else_can_read_the_password(start_redis: StartRedis) -> None:
    server = start_redis(password="secret")
    assert server.pid is not None
    assert stat.S_IMODE((server.folder / "redis.conf").stat().st_mode) == 0o600
    assert b"secret" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        server = RedisServer(folder=tmp_path, port=holder.getsockname()[1])
        with pytest.raises(UserError, match=str(server.port)):
            server.start()
    assert not server.running


def test_a_missing_binary_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="make deps"):
        RedisServer(folder=tmp_path, port=free_port()).start()


def test_settings_that_redis_refuses_come_with_its_own_words(tmp_path: Path) -> None:
    server = RedisServer(folder=tmp_path, port=free_port(), settings={"no-such-setting": "1"})
    with pytest.raises(UserError, match="no-such-setting"):
        server.start()
    assert not server.running
