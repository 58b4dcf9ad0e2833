"""The addresses of broker and store, from options, environment or the local stack, and errors that name them.

An option wins over the environment (`SPLITEASY_BROKER`, `SPLITEASY_STORE`, `SPLITEASY_MANAGEMENT`), which
wins over what `make up` wrote to `.local/stack.json` in the current folder.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spliteasy.errors import UserError
from spliteasy.runtime.urls import QUOTE_HINT, check_places, scheme_of

if TYPE_CHECKING:
    from broker import Transport
    from server_worker.store import Store, StoreKeys

DEFERRED_S = 60.0
"""A command asks again for this long where the answer is: not now."""
LOCAL_STACK = Path(".local/stack.json")

BrokerOption = Annotated[
    str | None,
    typer.Option(
        "--broker",
        envvar="SPLITEASY_BROKER",
        metavar="URL",
        help="amqp:// or amqps:// (of a cluster: host:port,host:port), or for agents ws:// or wss:// "
        "(a gateway); by default the local stack's.",
        show_default=False,
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="SPLITEASY_STORE",
        metavar="URL",
        help="redis://, rediss://, redis+sentinel:// or sqlite:///path; by default the local stack's.",
        show_default=False,
    ),
]
EnrolmentOption = Annotated[
    Path | None,
    typer.Option(
        "--enrolment",
        metavar="FILE",
        help="The file that `spliteasy device enroll` wrote, which names the broker and the account.",
        show_default=False,
    ),
]


def find_url(what: Literal["broker", "store", "management"], option: str | None) -> str:
    """Return the URL to use. Raises UserError where nobody named one, or a password in it is not quoted."""
    url = option or _local_stack().get(what)
    if not url:
        raise UserError(
            f"no {what} named, and no local stack runs here",
            hint=f"start one with `make up`, or set SPLITEASY_{what.upper()}=URL",
        )
    if scheme_of(url) != "sqlite":  # a path may have any character
        try:
            check_places(url)
        except ValueError as error:
            raise UserError(f"the URL of the {what} has {error}", hint=QUOTE_HINT) from None
    return url


def local_stack_is(url: str, what: Literal["broker", "store"] = "broker") -> bool:
    """Return whether the URL is that of the local stack (whose devices and workers may share one account)."""
    return url == _local_stack().get(what)


@asynccontextmanager
async def broker_at(option: str | None, *, deferred_s: float = DEFERRED_S) -> AsyncIterator[Transport]:
    """A connection to the broker, closed at the end; one that says "not now" is asked again for `deferred_s`.

    Raises UserError, LinkError, LinkRefused.
    """
    from broker import connect
    from broker.transport.patience import tried_for_a_while

    url = find_url("broker", option)
    transport = await tried_for_a_while(lambda: connect(url), deferred_s=deferred_s, tell=_warn)
    try:
        yield transport
    finally:
        await transport.close()


@asynccontextmanager
async def store_at(
    option: str | None,
    *,
    keys: StoreKeys | None = None,
    unreachable_s: float = 0.0,
    deferred_s: float = DEFERRED_S,
) -> AsyncIterator[Store]:
    """The store, closed at the end; one that says "not now" is asked again for `deferred_s`, and one that
    does not answer for `unreachable_s`. A caller that reads values in it gives `keys`.

    Raises UserError, StoreUnavailable.
    """
    from broker.transport.patience import tried_for_a_while
    from server_worker.store import open_store

    url = find_url("store", option)
    store = await tried_for_a_while(
        lambda: open_store(url, keys), unreachable_s=unreachable_s, deferred_s=deferred_s, tell=_warn
    )
    try:
        yield store
    finally:
        await store.close()


def _warn(line: str) -> None:
    import structlog

    structlog.get_logger(__name__).warning(line)


def _local_stack() -> dict[str, str]:
    try:
        text = LOCAL_STACK.read_text()
    except FileNotFoundError:
        return {}
    try:
        stack = json.loads(text)
        return {name: str(stack[name]) for name in ("broker", "store", "management")}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{LOCAL_STACK} is not what `make up` writes", hint="make down && make up") from None
