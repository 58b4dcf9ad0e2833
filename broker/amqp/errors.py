"""Errors of a RabbitMQ connection, each in one line for a person. They never show the password."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from aiormq import exceptions as amqp

from spliteasy.errors import AccountGone, LinkDeferred, LinkError, LinkRefused, SplitEasyError, Unroutable
from spliteasy.runtime.descriptors import LACK_HINT, lack_of_descriptors
from spliteasy.runtime.urls import QUOTE_HINT, split_url

_FINAL_TLS = re.compile("WRONG_VERSION|HTTP_REQUEST|UNKNOWN_CA|BAD_CERTIFICATE|CERTIFICATE_REQUIRED|PROTOCOL")
"""Reasons of a failed handshake that stay until somebody mends the URL or the certificates."""
_LIMIT = re.compile(r"\b(limit|maximum)\b", re.IGNORECASE)
"""A limit of connections, channels or queues, which is not reached any more when others have gone."""
_NOT_ALLOWED = 530
_DATES = {9, 10}
"""OpenSSL's codes for a certificate that is not valid yet, or not any more."""


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
    # aiormq wraps what the system said, and repeats only its arguments.
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if lack_of_descriptors(cause):
        return LinkError(
            f"this process can open no connection to the broker at {address}: it has used up its file "
            "descriptors",
            hint=LACK_HINT,
        )
    if isinstance(error, TimeoutError):
        return LinkError(f"the broker at {address} does not answer", hint="check the network and the port")
    if isinstance(cause, ssl.SSLError):
        return _tls_error(cause, address)
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
    if urlsplit(address.text).scheme == "amqps" and _broke_off(cause):
        return LinkDeferred(
            f"what answers at {address} broke the connection off, in its TLS handshake or after",
            hint="a broker that is starting or ending does; else check that the port is its TLS port",
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


def _broke_off(cause: BaseException) -> bool:
    """Return whether the other side hung up on a connection that it had taken."""
    return not isinstance(cause, OSError) or isinstance(cause, ConnectionResetError | ConnectionAbortedError)


def _tls_error(error: ssl.SSLError, address: Address) -> LinkError:
    """Why there is no TLS: a broker that is just starting or ending may break a handshake off, and a device
    without a clock takes a certificate for one of the future.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        kind = LinkDeferred if error.verify_code in _DATES else LinkRefused
        return kind(
            f"the certificate of {address} is not trusted: {error.verify_message}",
            hint="check this machine's clock, and the certificate's dates"
            if kind is LinkDeferred
            else "give the right authority with ?cafile=PATH, and the host's name as in its certificate",
        )
    reason = error.reason or "handshake failed"
    return (LinkRefused if _FINAL_TLS.search(reason) else LinkDeferred)(
        f"no TLS with {address}: {reason}",
        hint="amqps:// is for TLS ports, amqp:// for plain ones; certfile and keyfile must fit",
    )


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
    """The broker's reply text on one line, without the trailing noise."""
    return " ".join(text.split())[:200]
