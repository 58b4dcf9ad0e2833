"""The command tree: the options of every command, and where each command is.

Nothing here or in `commands/` imports torch, pydantic or structlog before a command runs: `--help` is quick.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Annotated

import typer

from spliteasy.errors import UserError
from spliteasy_cli.browser import command as browser_command
from spliteasy_cli.commands import (
    agent,
    dashboard,
    device,
    gateway,
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
from spliteasy_cli.support.sectioned_group import SectionedGroup

MOVED = {
    "sessions": "session list",
    "pause": "session pause",
    "resume": "session resume",
    "forget": "session forget",
    "devices": "device list",
    "enroll": "device enroll",
    "revoke": "device revoke",
    "allow": "device allow",
}
"""Commands of earlier versions, and where each is now."""

app = typer.Typer(
    name="spliteasy",
    cls=SectionedGroup,
    help="Train deep models on data that stays on the devices.",
    epilog="Start here: `spliteasy train examples/digits/job.toml`, all in one process. "
    "With a broker and a store (`make up`): submit, worker, agent, status.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"spliteasy {metadata.version('spliteasy')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Log everything, and show errors with a traceback.")
    ] = False,
    log_level: Annotated[
        str | None,
        typer.Option(help="Log debug, info, warning or error.", show_default="by command", metavar="LEVEL"),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """These options may come before or behind every command."""
    if log_level is not None:
        from spliteasy.observability.logs import LEVELS

        if log_level not in LEVELS:
            raise typer.BadParameter(f"{log_level!r} is not one of {', '.join(LEVELS)}")
    context.obj = "debug" if debug and log_level is None else log_level


app.command("train", rich_help_panel="Train")(train.train)
app.command("browser", rich_help_panel="Train")(browser_command.browser)
app.command("parity", rich_help_panel="Train")(parity.parity)
app.command("plan", rich_help_panel="Choose the cut")(plan.plan)
app.command("profile", rich_help_panel="Choose the cut")(profile.profile)
app.command("leakage", rich_help_panel="Choose the cut")(leakage.leakage)
app.command("keygen", rich_help_panel="On a broker and a store")(keys.keygen)
app.command("fleet-key", rich_help_panel="On a broker and a store")(keys.fleet_key)
app.command("submit", rich_help_panel="On a broker and a store")(submit.submit)
app.command("worker", rich_help_panel="On a broker and a store")(worker.worker)
app.command("gateway", rich_help_panel="On a broker and a store")(gateway.gateway)
app.command("agent", rich_help_panel="On a broker and a store")(agent.agent)
app.command("fleet", rich_help_panel="On a broker and a store")(status.fleet)
app.command("status", rich_help_panel="On a broker and a store")(status.status)
app.command("dashboard", rich_help_panel="On a broker and a store")(dashboard.dashboard)
app.add_typer(
    session.app,
    name="session",
    help="List the sessions, pause and resume one, or forget it.",
    rich_help_panel="On a broker and a store",
)
app.add_typer(
    device.app,
    name="device",
    help="Give a device an account on the broker, end it, and say which jobs it may train.",
    rich_help_panel="On a broker and a store",
)
app.command("merge", rich_help_panel="Use what was trained")(model.merge)
app.command("predict", rich_help_panel="Use what was trained")(model.predict)


def _moved(old: str, new: str) -> Callable[[typer.Context], None]:
    """Return the command that answers for an old spelling with the new one."""

    def moved(context: typer.Context) -> None:
        # A URL may have a password in it, even in several arguments where nobody quoted it.
        arguments = [] if any("://" in argument for argument in context.args) else context.args
        command = shlex.join(["spliteasy", *new.split(), *arguments])
        raise UserError(f"`spliteasy {old}` is `spliteasy {new}` now", hint=command)

    return moved


for _old, _new in MOVED.items():
    app.command(
        _old,
        hidden=True,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(_moved(_old, _new))
