"""Errors of a RabbitMQ connection, each in one line for a person. They never show the password."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from aiormq import exceptions as amqp

from broker.transport.reachability import Server, unreachable
from spliteasy.errors import (
    AccountGone,
    AccountRefused,
    LinkDeferred,
    LinkError,
    LinkRefused,
    SplitEasyError,
    Unroutable,
)
from spliteasy.runtime.descriptors import lack_of_descriptors
from spliteasy.runtime.urls import QUOTE_HINT, places_of, split_url

_LIMIT = re.compile(r"\b(limit|maximum)\b", re.IGNORECASE)
"""A limit of connections, channels or queues, which is not reached any more when others have gone."""
_OTHER_TYPE = re.compile(r"inequivalent arg 'x-queue-type' for queue '(spliteasy\.[a-z.0-9]+)'")
_NOT_ALLOWED = 530


_TYPE_HINT = (
    "stop all workers, then delete the queues spliteasy.dead, spliteasy.front and spliteasy.shard.* "
    "(rabbitmqctl delete_queue NAME): the workers declare them again with the stack's type (--queues), "
    "and what was in them is sent again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A broker's URL, taken apart. `text` holds the password: it is for the library only."""

    text: str
    host: str
    port: int
    account: str
    vhost: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def server(self) -> Server:
        """The broker, for errors."""
        return Server(
            name="broker",
            host=self.host,
            port=self.port,
            schemes=("amqp", "amqps"),
            start_hint="is it running, and is the URL right? `make up` starts a local one",
        )

    def with_options(self, **options: object) -> str:
        """The URL with query options that it does not set itself."""
        parts = urlsplit(self.text)
        query = {**{name: str(value) for name, value in options.items()}, **dict(parse_qsl(parts.query))}
        return urlunsplit(parts._replace(query=urlencode(query)))


def parse_urls(url: str) -> list[Address]:
    """Return the addresses of a URL, which may name several nodes of a cluster.

    Raises `LinkRefused` for what is not an AMQP URL.
    """
    return [parse_url(place) for place in places_of(url)]


def parse_url(url: str) -> Address:
    """Raises `LinkRefused` for what is not an AMQP URL of one node."""
    hint = "use amqp://user:password@host:port/vhost"
    try:
        parts = split_url(url)
    except ValueError as error:
        raise LinkRefused(f"the broker's URL has {error}", hint=f"{hint}; {QUOTE_HINT}") from None
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise LinkRefused("the broker's URL is not one of AMQP", hint=hint)
    return Address(
        text=url,
        host=parts.hostname,
        port=parts.port or (5671 if parts.scheme == "amqps" else 5672),
        account=unquote(parts.username or "guest"),
        vhost=unquote(parts.path[1:]) or "/",
    )


def connect_error(error: BaseException, address: Address) -> LinkError:
    """Why connecting failed: `LinkRefused` where somebody has to mend something, `LinkDeferred` where the
    answer was no and may be yes later.
    """
    if isinstance(error, amqp.ProbableAuthenticationError | amqp.AuthenticationError):
        return AccountRefused(
            f"the broker at {address} refused the account {address.account!r}",
            hint="check user and password in the broker's URL",
        )
    if isinstance(error, amqp.ConnectionClosed):  # said to Connection.Open, once the account was accepted
        code, said = error.args[0], _reason(str(error.args[-1]))
        if code != _NOT_ALLOWED:
            return LinkDeferred(
                f"the broker at {address} takes no connections now: {said}", hint="see its log"
            )
        return LinkDeferred(
            f"the broker at {address} keeps {address.account!r} out of the virtual host {address.vhost!r}: "
            f"{said}",
            hint="check the URL's path, that the virtual host runs, and the account's permissions and limits",
        )
    # aiormq wraps what the system said, and repeats only its arguments.
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if urlsplit(address.text).scheme == "amqps" and _broke_off(cause) and not lack_of_descriptors(cause):
        return LinkDeferred(
            f"what answers at {address} broke the connection off, in its TLS handshake or after",
            hint="a broker that is starting or ending does; else check that the port is its TLS port",
        )
    return unreachable(cause, address.server) or LinkError(
        f"what answers at {address} closed the connection or is no AMQP broker",
        hint="check the port: TLS ports want amqps://",
    )


def _broke_off(cause: BaseException) -> bool:
    """Return whether the other side hung up on a connection that it had taken."""
    return not isinstance(cause, OSError) or isinstance(cause, ConnectionResetError | ConnectionAbortedError)


def lost_error(error: BaseException | None, address: Address) -> LinkError:
    """Why an open connection was lost. `AccountGone` where the broker says that the account was deleted."""
    text = _reason(str(error)) if error else ""
    if re.search(rf"user '{re.escape(address.account)}' (is|was) deleted", text):
        return AccountGone(f"the account {address.account!r} was deleted on the broker at {address}")
    return LinkError(f"the connection to {address} was lost{': ' + text if text else ''}")


def link_error(error: BaseException) -> LinkError:
    """Return the error that a caller gets for an error of an open connection."""
    text = str(error)
    if isinstance(error, amqp.PublishError) and error.message is not None:
        return Unroutable(f"no queue took the frame for {error.message.routing_key}")
    if isinstance(error, amqp.ChannelNotFoundEntity):
        return Unroutable(f"the broker has no such thing: {_reason(text)}", hint="do workers run?")
    if isinstance(error, amqp.ChannelAccessRefused):
        return LinkRefused(f"the account is not permitted this: {_reason(text)}")
    if isinstance(error, amqp.ChannelPreconditionFailed | amqp.ConnectionNotAllowed):
        if (queue := _OTHER_TYPE.search(text)) is not None:
            return LinkRefused(f"the queue {queue[1]} was declared with another type before", hint=_TYPE_HINT)
        kind = LinkDeferred if _LIMIT.search(text) else LinkRefused
        return kind(f"the broker refused: {_reason(text)}")
    if isinstance(error, TimeoutError):
        return LinkError("the broker did not answer in time")
    if isinstance(error, amqp.DeliveryError):
        return LinkError("the broker could not take the frame now")
    return LinkError(f"the connection to the broker was lost: {_reason(text) or type(error).__name__}")


@contextmanager
def translated() -> Iterator[None]:
    """Let nothing but our own errors out of calls to the AMQP library.

    A cancellation that nobody asked for is the library's way to say that the connection is gone.
    """
    try:
        yield
    except SplitEasyError:
        raise
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise LinkError("the connection to the broker was lost") from None
    except Exception as error:
        raise link_error(error) from None


def _reason(text: str) -> str:
    """Return the broker's reply text on one line, without the trailing noise."""
    return " ".join(text.split())[:200]
