"""A gateway's URL, and why it can't be reached."""

from __future__ import annotations

import ssl
from base64 import b64decode
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlunsplit

import aiohttp

from broker.gateway import wire
from broker.transport.reachability import Server, unreachable
from spliteasy.errors import LinkDeferred, LinkError, LinkRefused
from spliteasy.runtime.urls import QUOTE_HINT, split_url


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAddress:
    """A gateway's URL, taken apart."""

    endpoint: str
    """The URL of its socket, without the account."""
    server: Server
    account: str
    password: str
    tls: ssl.SSLContext | None

    def __repr__(self) -> str:
        return f"GatewayAddress({self.server})"


def parse_address(url: str) -> GatewayAddress:
    """Raises `LinkRefused` for what is not a gateway's URL."""
    hint = "use wss://account:password@host:port"
    try:
        parts = split_url(url)
    except ValueError as error:
        raise LinkRefused(f"the gateway's URL has {error}", hint=f"{hint}; {QUOTE_HINT}") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise LinkRefused("the gateway's URL is not one of a WebSocket", hint=hint)
    if not parts.username or not parts.password:
        raise LinkRefused("the gateway's URL names no account and password", hint=hint)
    server = Server(
        name="gateway",
        host=parts.hostname,
        port=parts.port or (443 if parts.scheme == "wss" else 80),
        schemes=("ws", "wss"),
        start_hint="is it running, and is the URL right? `spliteasy gateway` starts one",
    )
    place = parts.netloc.rpartition("@")[2]
    path = wire.PATH if parts.path in ("", "/") else parts.path
    return GatewayAddress(
        endpoint=urlunsplit((parts.scheme, place, path, "", "")),
        server=server,
        account=unquote(parts.username),
        password=unquote(parts.password),
        tls=_tls_context(parts.query, server) if parts.scheme == "wss" else None,
    )


def _tls_context(query: str, server: Server) -> ssl.SSLContext:
    """Make the context that the URL's cafile or cadata (base64 of DER) ask for, or the system's."""
    said = {name: values[0] for name, values in parse_qs(query).items()}
    try:
        der = b64decode(said["cadata"]) if "cadata" in said else None
        context = ssl.create_default_context(cafile=said.get("cafile"), cadata=der)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if "certfile" in said:
            context.load_cert_chain(said["certfile"], said.get("keyfile"))
    except (OSError, ValueError) as error:
        refused = LinkRefused("the certificates in the gateway's URL can't be used")
        raise (unreachable(error, server) or refused) from None
    return context


def connect_error(error: BaseException, server: Server) -> LinkError:
    """Why connecting failed, as one of our errors."""
    if isinstance(error, LinkError):
        return error
    if isinstance(error, aiohttp.WSServerHandshakeError):
        kind = LinkDeferred if error.status >= 500 else LinkRefused
        return kind(
            f"what answers at {server} gave no WebSocket: HTTP status {error.status}",
            hint="check host, port and path of the gateway's URL",
        )
    for cause in (getattr(error, "os_error", None), error.__cause__, error):
        if isinstance(cause, OSError | TimeoutError):
            found = unreachable(cause, server)
            if found is not None:
                return found
    return LinkError(
        f"what answers at {server} closed the connection or is no gateway",
        hint="it may have too many connections; TLS ports want wss://",
    )
