"""The command tree: global options, and one module a command."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from spliteasy.observability import logs
from spliteasy_cli.commands import (
    agent,
    dashboard,
    enroll,
    keys,
    leakage,
    model,
    parity,
    plan,
    profile,
    session,
    status,
    submit,
    train,
    worker,
)

app = typer.Typer(
    name="spliteasy",
    help="Train deep models on data that stays on the devices.",
    epilog="Start here: `spliteasy train examples/digits/job.toml`, all in one process. "
    "With a broker and a store (`make up`): submit, worker, agent, status.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spliteasy {metadata.version('spliteasy')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Log everything; errors with traceback.")] = False,
    log_level: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(logs.LEVELS)}.", show_default="by command", metavar="LEVEL"),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What stands before (or behind) every command."""
    if log_level is not None and log_level not in logs.LEVELS:
        raise typer.BadParameter(f"{log_level!r} is not one of {', '.join(logs.LEVELS)}")
    context.obj = "debug" if debug and log_level is None else log_level


app.command("train", rich_help_panel="Train")(train.train)
app.command("parity", rich_help_panel="Train")(parity.parity)
app.command("plan", rich_help_panel="Choose the cut")(plan.plan)
app.command("profile", rich_help_panel="Choose the cut")(profile.profile)
app.command("leakage", rich_help_panel="Choose the cut")(leakage.leakage)
app.command("keygen", rich_help_panel="On a broker and a store")(keys.keygen)
app.command("fleet-key", rich_help_panel="On a broker and a store")(keys.fleet_key)
app.command("submit", rich_help_panel="On a broker and a store")(submit.submit)
app.command("worker", rich_help_panel="On a broker and a store")(worker.worker)
app.command("agent", rich_help_panel="On a broker and a store")(agent.agent)
app.command("status", rich_help_panel="On a broker and a store")(status.status)
app.command("dashboard", rich_help_panel="On a broker and a store")(dashboard.dashboard)
app.command("sessions", rich_help_panel="On a broker and a store")(session.sessions)
app.command("pause", rich_help_panel="On a broker and a store")(session.pause)
app.command("resume", rich_help_panel="On a broker and a store")(session.resume)
app.command("forget", rich_help_panel="On a broker and a store")(session.forget)
app.command("enroll", rich_help_panel="Accounts on the broker")(enroll.enroll)
app.command("revoke", rich_help_panel="Accounts on the broker")(enroll.revoke)
app.command("allow", rich_help_panel="Accounts on the broker")(enroll.allow)
app.command("devices", rich_help_panel="Accounts on the broker")(enroll.devices)
app.command("merge", rich_help_panel="Use what was trained")(model.merge)
app.command("predict", rich_help_panel="Use what was trained")(model.predict)
