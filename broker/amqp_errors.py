"""What goes wrong with a RabbitMQ connection, in one line for a person. Never shows the password."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from aiormq import exceptions as amqp

from spliteasy.errors import LinkError, LinkRefused, SplitEasyError, Unroutable


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

    def with_options(self, **options: object) -> str:
        """The URL with query options that it does not set itself."""
        parts = urlsplit(self.text)
        query = {**{name: str(value) for name, value in options.items()}, **dict(parse_qsl(parts.query))}
        return urlunsplit(parts._replace(query=urlencode(query)))


def parse_url(url: str) -> Address:
    """Raises `LinkRefused` for what is not an AMQP URL."""
    hint = "use amqp://user:password@host:port/vhost"
    try:
        parts = urlsplit(url)
        port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
    except ValueError:
        raise LinkRefused("the broker's URL has a port or host that is none", hint=hint) from None
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise LinkRefused("the broker's URL is not one of AMQP", hint=hint)
    return Address(
        text=url,
        host=parts.hostname,
        port=port,
        account=unquote(parts.username or "guest"),
        vhost=unquote(parts.path[1:]) or "/",
    )


def connect_error(error: BaseException, address: Address) -> LinkError:
    """Why connecting failed. `LinkRefused` where trying again can't help."""
    # aiormq wraps what the system said, and repeats only its arguments.
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if isinstance(error, TimeoutError):
        return LinkError(f"the broker at {address} does not answer", hint="check the network and the port")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return LinkRefused(
            f"the certificate of {address} is not trusted: {cause.verify_message}",
            hint="give the right authority with ?cafile=PATH, and the host's name as in its certificate",
        )
    if isinstance(cause, ssl.SSLError):
        return LinkRefused(
            f"no TLS with {address}: {cause.reason or 'handshake failed'}",
            hint="amqps:// is for TLS ports, amqp:// for plain ones; certfile and keyfile must fit",
        )
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return LinkRefused(
            f"a TLS file can't be read: {os.strerror(error.errno or 0).lower()}",
            hint="check cafile, certfile and keyfile in the broker's URL",
        )
    if isinstance(cause, socket.gaierror):
        return LinkError(f"the broker's host {address.host!r} is unknown", hint="check the URL's host name")
    if isinstance(error, amqp.ProbableAuthenticationError | amqp.AuthenticationError):
        return LinkRefused(
            f"the broker at {address} refused the account {address.account!r}",
            hint="check user and password in the broker's URL",
        )
    # To Connection.Open, sent once the account is accepted, aiormq knows no other answer than OpenOk.
    if isinstance(error, amqp.ConnectionNotAllowed) or "Connection.OpenOk" in str(error):
        return LinkRefused(
            f"the broker at {address} keeps {address.account!r} out of the virtual host {address.vhost!r}",
            hint="check the URL's path, and the account's permissions and connection limit",
        )
    if isinstance(cause, OSError) and cause.errno:
        return LinkError(
            f"the broker at {address} can't be reached: {os.strerror(cause.errno).lower()}",
            hint="is it running, and is the URL right? `make up` starts a local one",
        )
    return LinkError(
        f"what answers at {address} closed the connection or is no AMQP broker",
        hint="check the port: TLS ports want amqps://",
    )


def link_error(error: BaseException) -> LinkError:
    """What an error of an open connection means for the caller."""
    text = str(error)
    if isinstance(error, amqp.PublishError) and error.message is not None:
        return Unroutable(f"no queue took the frame for {error.message.routing_key}")
    if isinstance(error, amqp.ChannelNotFoundEntity):
        return Unroutable(f"the broker has no such thing: {_reason(text)}", hint="do workers run?")
    if isinstance(error, amqp.ChannelAccessRefused):
        return LinkRefused(f"the account is not permitted this: {_reason(text)}")
    if isinstance(error, amqp.ChannelPreconditionFailed | amqp.ConnectionNotAllowed):
        return LinkRefused(f"the broker refused: {_reason(text)}")
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
    """The broker's reply text on one line, without the trailing noise."""
    return " ".join(text.split())[:200]
