"""`spliteasy sessions`, `pause`, `resume` and `forget`: what the server keeps of each, and having a say."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError
from spliteasy_cli.commands.status import as_record, show_sessions
from spliteasy_cli.support.endpoints import StoreOption, store_at
from spliteasy_cli.support.log_setup import set_up_logging

if TYPE_CHECKING:
    from server_worker.store import SessionMeta


def sessions(
    context: typer.Context,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for programs.")] = False,
) -> None:
    """List what the server keeps of each session: steps it can restore, log, owner, last change.

    A session that nobody touches is deleted when its job's `durability.retention_s` is over.
    """
    set_up_logging(context, "warning")
    found = asyncio.run(_sessions(store))
    if as_json:
        import orjson

        typer.echo(orjson.dumps([as_record(meta) for meta in found], option=orjson.OPT_INDENT_2).decode())
    else:
        from rich.console import Console

        show_sessions(found, Console())


async def _sessions(store: str | None) -> list[SessionMeta]:
    async with store_at(store) as open_store:
        return sorted(await open_store.sessions(), key=lambda meta: meta.session)


def forget(
    context: typer.Context,
    session: Annotated[str, typer.Argument(help="As `spliteasy status` lists it: JOB.DEVICE")],
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete what the server keeps of a session: the body's weights, optimizer and log.

    A device that still has its state folder can't go on with it afterwards; one with a new folder begins
    at step 0.
    """
    set_up_logging(context, "warning")
    if not yes:
        typer.confirm(f"Delete the body's state of {session} for good?", abort=True)
    if not asyncio.run(_forget(session, store)):
        raise UserError(f"the store has no session {session}", hint="see `spliteasy status`")
    typer.echo(f"forgot {session}")


def pause(
    context: typer.Context,
    session: Annotated[str, typer.Argument(help="As `spliteasy status` lists it: JOB.DEVICE")],
    store: StoreOption = None,
) -> None:
    """Hold a session: the step at hand ends, no other begins until `spliteasy resume`. Nothing is lost."""
    _set_paused(context, session, store, paused=True)
    typer.echo(f"{session}: paused; go on with: spliteasy resume {session}")


def resume(
    context: typer.Context,
    session: Annotated[str, typer.Argument(help="As `spliteasy status` lists it: JOB.DEVICE")],
    store: StoreOption = None,
) -> None:
    """Let a paused session go on: its device asks every few seconds."""
    _set_paused(context, session, store, paused=False)
    typer.echo(f"{session}: may go on")


def _set_paused(context: typer.Context, session: str, store: str | None, *, paused: bool) -> None:
    set_up_logging(context, "warning")

    async def put() -> bool:
        async with store_at(store) as open_store:
            return await open_store.pause(session, paused)

    if not asyncio.run(put()):
        raise UserError(f"the store has no session {session}", hint="see `spliteasy status`")


async def _forget(session: str, store: str | None) -> bool:
    async with store_at(store) as open_store:
        return await open_store.forget(session)
