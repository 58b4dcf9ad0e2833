"""`spliteasy dashboard` as a command: it says where it is, and ends when told to."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.cli.conftest import Ran, finish, read_until, started

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis]


def test_it_serves_until_it_is_told_to_end(rabbitmq_url: str, redis_url: str, tmp_path: Path) -> None:
    where = {"SPLITEASY_BROKER": rabbitmq_url, "SPLITEASY_STORE": redis_url}
    with started(["dashboard", "--port", "0"], tmp_path, **where) as process:
        said = read_until(process, "dashboard at")
        assert "read-only" in said
        address = re.search(r"http://127\.0\.0\.1:\d+/", said)
        assert address is not None
        with urlopen(address[0]) as answer:
            assert b"<title>SplitEasy</title>" in answer.read()
        with urlopen(f"{address[0]}api/events") as stream:
            assert stream.readline().startswith(b"event: ")
            process.send_signal(signal.SIGINT)
            assert "Traceback" not in finish(process)


def test_what_is_wrong_is_said_before_anything_is_promised(
    spliteasy: Callable[..., Ran],
    rabbitmq_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("SPLITEASY_BROKER", rabbitmq_url)
    monkeypatch.setenv("SPLITEASY_STORE", redis_url)
    assert "can't be read" in spliteasy("dashboard", "--token-file", tmp_path / "none").error
    amqp_port = rabbitmq_url.rpartition(":")[2].partition("/")[0]
    assert f"can't listen on 127.0.0.1:{amqp_port}" in spliteasy("dashboard", "--port", amqp_port).error
    monkeypatch.delenv("SPLITEASY_STORE")
    assert "no store named" in spliteasy("dashboard").error
