"""`spliteasy gateway`: a WebSocket door to the broker, for devices that can't speak AMQP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from spliteasy.errors import UserError
from spliteasy.runtime.urls import places_of, shown
from spliteasy_cli.browser.page import PAGE
from spliteasy_cli.options.metrics_endpoint import (
    METRICS_HOST,
    MetricsHostOption,
    MetricsPortOption,
    Monitoring,
)
from spliteasy_cli.support.endpoints import BrokerOption, find_url
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.runner import run

if TYPE_CHECKING:
    import asyncio
    import ssl

    from broker.gateway.server import Gateway

LOOPBACK = ("127.0.0.1", "::1", "localhost")
PROBE_S = 2.0
MIB = 1 << 20
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:.]+\](:\d{1,5})?", re.IGNORECASE)

ListenOption = Annotated[
    str, typer.Option("--listen", metavar="HOST:PORT", help="Where devices connect; port 0: a free one.")
]
CertificateOption = Annotated[
    Path | None,
    typer.Option(
        "--cert", metavar="FILE", help="Its certificate, with those between it and the authority (PEM)."
    ),
]
KeyOption = Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The certificate's key (PEM).")]
PlainOption = Annotated[
    bool,
    typer.Option(
        "--plain",
        help="Serve other machines without TLS: only where something before it ends TLS, since devices send "
        "their passwords.",
    ),
]
OriginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--origin",
        metavar="ORIGIN",
        help="Another page that may connect, as https://host[:port]. Again for more. Agents of Python need "
        "none.",
        show_default="its own page only",
    ),
]
ConnectionsOption = Annotated[int, typer.Option("--connections", min=1, help="Devices connected at most.")]
PerAddressOption = Annotated[
    int,
    typer.Option(
        "--per-address",
        min=1,
        help="Connections from one address at most. Behind a balancer that hides addresses, give as many as "
        "--connections.",
    ),
]
MemoryOption = Annotated[
    int,
    typer.Option(
        "--memory-mib",
        min=1,
        help="MiB of frames on their way up, and as many on their way down, of all devices together.",
    ),
]
DrainOption = Annotated[
    float, typer.Option("--drain-s", min=0.0, help="Seconds that a stopping gateway waits for confirms.")
]
PageOption = Annotated[
    bool, typer.Option("--page/--no-page", help="Serve the page that trains in a browser, beside the socket.")
]


def gateway(
    context: typer.Context,
    broker: BrokerOption = None,
    listen: ListenOption = "127.0.0.1:8443",
    cert: CertificateOption = None,
    key: KeyOption = None,
    plain: PlainOption = False,
    origin: OriginOption = None,
    connections: ConnectionsOption = 4096,
    per_address: PerAddressOption = 64,
    memory_mib: MemoryOption = 256,
    drain_s: DrainOption = 5.0,
    page: PageOption = True,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = METRICS_HOST,
) -> None:
    """Let devices reach the broker by a WebSocket: pages of a browser, and agents behind proxies.

    It serves the page that trains in a browser (docs/browser.md), too.

    A device connects with its own account, and the gateway opens the broker
    with it: it has no account of its own, and keeps nothing. Start as many
    side by side as you like, behind any balancer of TCP. Ctrl-C or SIGTERM:
    what has come is confirmed, and devices are told to connect again.

    Try it, each in a terminal of its own:

    spliteasy gateway

    spliteasy device enroll phone-7 --job JOB --gateway ws://127.0.0.1:8443

    spliteasy agent --enrolment phone-7.enrol --data DATA
    """
    set_up_logging(context, "info")
    try:
        from broker.gateway import metrics
        from broker.gateway.limits import GatewayLimits
        from broker.gateway.pages import Pages
        from broker.gateway.server import Gateway, serve
        from broker.gateway.upstream import broker_upstream
    except ModuleNotFoundError as missing:
        raise UserError(
            f"the gateway needs the package {missing.name}", hint="pip install 'spliteasy[gateway]'"
        ) from None
    url = find_url("broker", broker)
    if urlsplit(url).scheme not in ("amqp", "amqps"):
        raise UserError(
            f"a gateway stands before a broker, and {shown(url)} is none",
            hint="--broker amqps://host:port/vhost",
        )
    host, port = _place(listen)
    tls = _tls(cert, key)
    if tls is None and host not in LOOPBACK and not plain:
        raise UserError(
            f"devices would send their passwords to {host} in the clear",
            hint="give --cert and --key, or --plain where something before it ends TLS",
        )
    limits = GatewayLimits(
        connections=connections,
        per_address=per_address,
        total_in_flight_bytes=memory_mib * MIB,
        held_bytes=memory_mib * MIB,
        drain_s=drain_s,
    )
    monitoring = Monitoring(metrics.ALL, port=metrics_port, host=metrics_host)
    origins = [_origin(each) for each in origin or ()]
    pages = Pages.of(PAGE) if page else None

    async def main(stop: asyncio.Event) -> None:
        serving = Gateway(
            broker_upstream(url), limits=limits, origins=origins, pages=pages, meter=monitoring.meter
        )

        async def measure() -> None:
            serving.measure()

        async with (
            monitoring.serving(measure=measure, why_not_ready=lambda: _why_not_ready(serving, url)),
            serve(serving, host=host, port=port, tls=tls) as bound,
        ):
            shown_host = f"[{host}]" if ":" in host else host
            scheme = "ws" if tls is None else "wss"
            typer.echo(f"gateway at {scheme}://{shown_host}:{bound}, before {shown(url)}; Ctrl-C ends it")
            await stop.wait()

    run(main, on_stop="stopping: what has come is confirmed first")


async def _why_not_ready(gateway: Gateway, url: str) -> str | None:
    """None where devices can be served. Whether the broker takes an account, only a device can try."""
    if gateway.stopping:
        return "stopping"
    if gateway.admission.full:
        return "full"
    reasons = [await _why_not_reached(place) for place in places_of(url)]
    return None if None in reasons else reasons[0]


async def _why_not_reached(url: str) -> str | None:
    """None where something listens at the URL of one node."""
    import asyncio

    parts = urlsplit(url)
    port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
    try:
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_connection(parts.hostname, port)
        writer.close()
    except (OSError, TimeoutError):
        return f"the broker at {parts.hostname}:{port} can't be reached"
    return None


def _place(listen: str) -> tuple[str, int]:
    """Return host and port. Raises UserError."""
    host, colon, port = listen.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise UserError(f"--listen {listen!r} is no HOST:PORT", hint="127.0.0.1:8443, or [::]:8443")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _origin(text: str) -> str:
    """Raises UserError where it is not what a browser would send."""
    if not _ORIGIN.fullmatch(text.rstrip("/")):
        raise UserError(f"--origin {text!r} is no origin of a page", hint="https://host or https://host:port")
    return text


def _tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Raises UserError where the files can't be used."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise UserError("--cert and --key go together")
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"{cert} and {key} are of no use: {error}", hint="PEM files that fit each other"
        ) from None
    return context
