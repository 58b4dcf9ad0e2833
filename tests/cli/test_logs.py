"""Logs: never a password, bound values on every line, JSON where nobody watches."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from spliteasy.observability import logs

PASSWORD = "hunter2-é"


def written(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    "value",
    [
        f"amqp://phone-1:{PASSWORD}@broker:5672/",
        f"redis://:{PASSWORD}@store:6379/0",
        f"can't reach amqps://a:{PASSWORD}@b/ nor redis://u:{PASSWORD}@c/",
        f"amqp://u:{PASSWORD}/with/slashes@broker/",
        f"amqp://u:with@{PASSWORD}@broker/",
        f"https://broker/?password={PASSWORD}&x=1",
        {"deep": [("amqp://u:" + PASSWORD + "@h/",)]},
        ConnectionError(f"amqp://u:{PASSWORD}@h/ refused"),
        f"amqp://u:{PASSWORD}@h/".encode(),
    ],
)
def test_no_password_in_any_value(value: object) -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    structlog.get_logger("test").info("connecting", where=value)
    assert "connecting" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()
    assert logs.HIDDEN in stream.getvalue()


def test_no_password_in_message_key_traceback_or_library_line() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    log = structlog.get_logger("test")
    log.info(f"amqp://u:{PASSWORD}@h/")
    log.info("login", password=PASSWORD, api_token=PASSWORD)
    logging.getLogger("some.library").warning("lost %s", f"amqp://u:{PASSWORD}@h/")
    try:
        raise ValueError(f"redis://:{PASSWORD}@h/")
    except ValueError:
        log.exception("failed")
    assert len(written(stream)) == 4
    assert "ValueError" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


@given(
    user=st.text(alphabet="abc-1", max_size=5),
    password=st.text(alphabet="xyz9@/:?&%#", min_size=3).filter(lambda text: len(set(text)) > 2),
)
def test_redact_hides_any_password_without_spaces(user: str, password: str) -> None:
    assert f":{password}@" not in logs.redact(f"see amqp://{user}:{password}@host/ now")


def test_a_url_without_password_stays_readable() -> None:
    text = "amqp://broker:5672/ and mail me@example.org, ratio 3:4@5"
    assert logs.redact(text) == text


def test_bound_values_stand_on_every_line_within() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    with logs.bound(job="digits", session="digits.phone-1"), logs.bound(step=7):
        structlog.get_logger("test").info("committed", loss=0.5)
    structlog.get_logger("test").info("outside")
    inside, outside = written(stream)
    assert inside["job"] == "digits"
    assert inside["session"] == "digits.phone-1"
    assert (inside["step"], inside["loss"], inside["level"]) == (7, 0.5, "info")
    assert "job" not in outside


def test_a_terminal_gets_readable_lines() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    logs.configure(stream=stream)
    structlog.get_logger("test").warning("broker gone", retry_s=2)
    assert "broker gone" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream.getvalue())


def test_the_level_holds() -> None:
    stream = io.StringIO()
    logs.configure("warning", stream=stream)
    structlog.get_logger("test").info("small talk")
    structlog.get_logger("test").warning("heed")
    assert [line["event"] for line in written(stream)] == ["heed"]
    with pytest.raises(ValueError, match="loud"):
        logs.configure("loud")
