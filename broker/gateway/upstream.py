"""A gateway reaches the broker with the account of each device, so that it has no right itself."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import quote, urlsplit, urlunsplit

from broker import connect
from broker.transport.base import Transport
from broker.transport.in_process import MemoryBroker
from spliteasy.errors import AccountRefused

Upstream = Callable[[str, str], Awaitable[Transport]]
"""A connection to the broker for an account and its password.

Raises `AccountRefused` where the broker knows them not, and `LinkError` where it can't be reached now.
"""


def broker_upstream(url: str) -> Upstream:
    """Connects to the broker at `url`; an account in it is left out."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]

    async def connect_as(account: str, password: str) -> Transport:
        netloc = f"{quote(account, safe='')}:{quote(password, safe='')}@{place}"
        return await connect(urlunsplit(parts._replace(netloc=netloc)))

    return connect_as


def in_process_upstream(broker: MemoryBroker, passwords: Mapping[str, str]) -> Upstream:
    """Connects to the broker of this process, which knows no passwords: they are checked here."""

    async def connect_as(account: str, password: str) -> Transport:
        known = passwords.get(account, "")
        if not known or not hmac.compare_digest(known.encode(), password.encode()):
            raise AccountRefused(f"the broker refused the account {account!r}")
        return broker.connect(account)

    return connect_as
