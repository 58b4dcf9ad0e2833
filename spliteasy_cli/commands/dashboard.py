"""`spliteasy dashboard`: a web page of what happens, where an operator may pause, resume and revoke."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError
from spliteasy_cli.commands.device import ManagementOption, accounts_at
from spliteasy_cli.options.verdicts import DEFAULT_VERDICTS, VerdictsOption
from spliteasy_cli.support.endpoints import BrokerOption, StoreOption, find_url
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.runner import run

if TYPE_CHECKING:
    import asyncio

    from deploy.accounts import Accounts

LOOPBACK = ("127.0.0.1", "::1", "localhost")

TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="A file with the token: a person who types it on the page may pause, resume and revoke.",
        show_default="SPLITEASY_DASHBOARD_TOKEN; without a token the page is read-only",
    ),
]
AllowHostOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        metavar="NAME",
        help="A name that browsers know the page by, such as that of a proxy. May be repeated.",
        show_default="localhost and IP addresses",
    ),
]


def dashboard(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(help="The address to listen at. Anybody who reaches it may look.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8080,
    token_file: TokenFileOption = None,
    allow_host: AllowHostOption = None,
    broker: BrokerOption = None,
    store: StoreOption = None,
    management: ManagementOption = None,
    every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    verdicts: VerdictsOption = DEFAULT_VERDICTS,
) -> None:
    """Serve a web page: devices, sessions, loss, throughput, workers, verdicts of the gate, and what happens.

    It is read-only without a token. Make one with: (umask 077; openssl rand -hex 24 > dashboard.token)
    """
    set_up_logging(context, "warning")
    try:
        from spliteasy_cli.dashboard import Guard, read_token
    except ModuleNotFoundError as missing:
        raise UserError(
            f"the dashboard needs the package {missing.name}", hint="pip install 'spliteasy[dashboard]'"
        ) from None

    token = read_token(token_file)
    guard = Guard(token=token, hosts=allow_host or ())
    how = "read-only" if token is None else "with the token: pause, resume, revoke"
    accounts = _accounts(management, broker)

    async def main(stop: asyncio.Event) -> None:
        from spliteasy_cli.dashboard import Feed, serve
        from spliteasy_cli.watch.cluster import ClusterClient
        from spliteasy_cli.watch.dashboard_feed import ClusterFeed, ClusterOperator

        async with ClusterClient(broker, store) as cluster:
            feed = Feed()
            looks = ClusterFeed(cluster, accounts, feed, verdicts)
            await looks.look()  # what is wrong with broker and store shows before the page is promised
            operator = ClusterOperator(cluster, accounts)
            async with serve(feed, guard, operator, host=host, port=port) as bound:
                _tell_where(host, bound, how)
                await looks.run(stop, every_s)

    run(main)


def _accounts(management: str | None, broker: str | None) -> Accounts | None:
    """Return the broker's accounts, or None where nobody named a management interface. Raises UserError.

    Without one the page shows the devices that have trained.
    """
    try:
        return accounts_at(management, find_url("broker", broker))
    except UserError:
        if management is not None:
            raise
        return None


def _tell_where(host: str, port: int, how: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"dashboard at http://{shown}:{port}/ ({how}); Ctrl-C ends it")
    if host not in LOOPBACK:
        typer.echo("anybody who reaches it may look, in the clear: put a proxy with TLS before it", err=True)
