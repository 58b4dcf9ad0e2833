"""No piece of a password comes out of a URL in which it is not quoted, wherever a URL is taken."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import broker
from deploy.accounts import Accounts
from server_worker.store import open_store
from spliteasy.errors import SplitEasyError
from spliteasy.observability.logs import redact
from spliteasy.runtime.urls import shown
from spliteasy_cli import main

PIECES = ("xyzzy", "plugh")
"""The text before and behind the special character of each password."""


def passwords() -> list[str]:
    return [
        PIECES[0] + between + PIECES[1]
        for between in ("@", "/", "?", "#", ":", "%", "@/", "/@", " ", "[", "?a=", "//")
    ]


async def manage(url: str) -> None:
    Accounts(url).list()


TAKES: dict[str, Callable[[str], Coroutine[Any, Any, Any]]] = {
    "amqp": broker.connect,
    "amqps": broker.connect,
    "redis": open_store,
    "rediss": open_store,
    "http": manage,
    "sqlite": open_store,
}


@pytest.mark.parametrize("password", passwords())
@pytest.mark.parametrize("scheme", TAKES)
@pytest.mark.parametrize(
    "form",
    [
        "{scheme}://user:{password}@127.0.0.1:1/0",
        "{scheme}://:{password}@127.0.0.1:1/0",
        "{scheme}://user:{password}@127.0.0.1:1,127.0.0.1:2/0",
        "{scheme}:/user:{password}@127.0.0.1:1/0",
        "user:{password}@127.0.0.1:1/0",
    ],
)
async def test_a_url_with_an_unquoted_password(scheme: str, password: str, form: str) -> None:
    url = form.format(scheme=scheme, password=password)
    with pytest.raises(SplitEasyError) as caught:
        await TAKES[scheme](url)
    told = [redact("".join(traceback.format_exception(caught.value))), str(caught.value), repr(caught.value)]
    for text in (*told, shown(url)):
        assert not any(piece in text for piece in PIECES), text


@pytest.mark.parametrize("password", passwords())
@pytest.mark.parametrize(
    "command",
    [
        "agent --job j --device d --data m:f --debug --broker amqp://u:{}@127.0.0.1:1/",
        "worker --debug --store sqlite:// --broker amqp://u:{}@127.0.0.1:1/",
        "sessions --store redis://:{}@127.0.0.1:1/0",
        "session list --store redis://:{}@127.0.0.1:1/0",
        "status --debug --store redis://:{}@127.0.0.1:1/0 --broker amqp://u:x@127.0.0.1:1/",
        "devices --management http://u:{}@127.0.0.1:1 --broker amqp://u:x@127.0.0.1:1/",
        "device list --management http://u:{}@127.0.0.1:1 --broker amqp://u:x@127.0.0.1:1/",
        "agent --job j --device d --data m:f --broker amqp://127.0.0.1:1 --traces u:{}@127.0.0.1",
    ],
)
def test_a_command_with_an_unquoted_password(
    capfd: pytest.CaptureFixture[str], password: str, command: str
) -> None:
    words = [word.format(password) for word in command.split()]
    assert main(words) in (1, 2)
    told = capfd.readouterr()
    assert "error: " in told.err
    assert not any(piece in told.out + told.err for piece in PIECES), told.err


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("amqp://u:p%40ss@host:5672/vhost?cafile=/a", "amqp://u:***@host:5672/vhost"),
        ("amqp://u@host/", "amqp://u@host/"),
        ("redis://:p@ss@host:1/0", "redis://:***@host:1/0"),
        ("redis://:p/ss@host:1/0", "redis://…"),
        ("u:p/ss@host", "a malformed URL"),
    ],
)
def test_what_a_person_sees_of_a_url(url: str, text: str) -> None:
    assert shown(url) == text
