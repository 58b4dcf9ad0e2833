"""Why a server can't be reached, in one line for a person. Shared by all transports over a network."""

from __future__ import annotations

import os
import re
import socket
import ssl
from dataclasses import dataclass

from spliteasy.errors import LinkDeferred, LinkError, LinkRefused
from spliteasy.runtime.descriptors import LACK_HINT, lack_of_descriptors

_FINAL_TLS = re.compile("WRONG_VERSION|HTTP_REQUEST|UNKNOWN_CA|BAD_CERTIFICATE|CERTIFICATE_REQUIRED|PROTOCOL")
"""Reasons of a failed handshake that stay until somebody mends the URL or the certificates."""
_DATES = {9, 10}
"""OpenSSL's codes for a certificate that is not valid yet, or not any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server that a client tried to reach, in the words of its errors."""

    name: str
    """"broker", or "gateway"."""
    host: str
    port: int
    schemes: tuple[str, str]
    """The schemes of its URLs: plain, and with TLS."""
    start_hint: str
    """Advice where nothing listens there."""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def unreachable(error: BaseException, server: Server) -> LinkError | None:
    """The error of ours for what the system or TLS said while connecting; None where it was neither.

    `LinkRefused` where somebody has to mend something, `LinkDeferred` where it may pass.
    """
    if lack_of_descriptors(error):
        return LinkError(
            f"this process can open no connection to the {server.name} at {server}: it has used up its file "
            "descriptors",
            hint=LACK_HINT,
        )
    if isinstance(error, TimeoutError):
        return LinkError(
            f"the {server.name} at {server} does not answer", hint="check the network and the port"
        )
    if isinstance(error, ssl.SSLError):
        return _tls_error(error, server)
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return LinkRefused(
            f"a TLS file can't be read: {os.strerror(error.errno or 0).lower()}",
            hint=f"check cafile, certfile and keyfile in the {server.name}'s URL",
        )
    if isinstance(error, socket.gaierror):
        return LinkError(
            f"the {server.name}'s host {server.host!r} is unknown", hint="check the URL's host name"
        )
    if isinstance(error, OSError) and error.errno:
        return LinkError(
            f"the {server.name} at {server} can't be reached: {os.strerror(error.errno).lower()}",
            hint=server.start_hint,
        )
    return None


def _tls_error(error: ssl.SSLError, server: Server) -> LinkError:
    """Why there is no TLS: a server that is just starting or ending may break a handshake off, and a device
    without a clock takes a certificate for one of the future.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        kind = LinkDeferred if error.verify_code in _DATES else LinkRefused
        return kind(
            f"the certificate of {server} is not trusted: {error.verify_message}",
            hint="check this machine's clock, and the certificate's dates"
            if kind is LinkDeferred
            else "give the right authority with ?cafile=PATH, and the host's name as in its certificate",
        )
    plain, encrypted = server.schemes
    reason = error.reason or "handshake failed"
    return (LinkRefused if _FINAL_TLS.search(reason) else LinkDeferred)(
        f"no TLS with {server}: {reason}",
        hint=f"{encrypted}:// is for TLS ports, {plain}:// for plain ones; certfile and keyfile must fit",
    )
