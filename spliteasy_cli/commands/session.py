"""`spliteasy session`: list what the server keeps of each session, pause and resume one, or forget it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError
from spliteasy_cli.commands.status import as_record, show_sessions
from spliteasy_cli.support.endpoints import StoreOption, store_at
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.sectioned_group import SectionedGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server_worker.store import SessionMeta


SessionName = Annotated[
    str, typer.Argument(metavar="JOB.DEVICE", help="The session, named as `spliteasy status` names it.")
]

SessionsOption = Annotated[int, typer.Option(min=1, metavar="N", help="Show so many sessions.")]
AfterOption = Annotated[
    str, typer.Option(metavar="JOB.DEVICE", help="Begin behind this name: the page before ended with it.")
]

app = typer.Typer(cls=SectionedGroup, no_args_is_help=True, rich_markup_mode=None)
"""`spliteasy session VERB`."""


@app.command("list")
def list_sessions(
    context: typer.Context,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list, for programs.")] = False,
    sessions: SessionsOption = 100,
    after: AfterOption = "",
) -> None:
    """List what the server keeps of sessions, by name: the steps it can restore, its log, its last change.

    A session that nobody touches is deleted when its job's `durability.retention_s` is over.
    """
    import asyncio

    set_up_logging(context, "warning")
    found, more = asyncio.run(_page(store, sessions, after))
    if as_json:
        import orjson

        typer.echo(orjson.dumps([as_record(meta) for meta in found], option=orjson.OPT_INDENT_2).decode())
    else:
        from rich.console import Console

        console = Console()
        show_sessions(found, console)
        if more:
            console.print(f"there are more: --after {found[-1].session}", style="dim")


async def _page(store: str | None, count: int, after: str) -> tuple[Sequence[SessionMeta], bool]:
    """Return a page of sessions, and whether there are more."""
    async with store_at(store) as open_store:
        found = await open_store.sessions_after(count + 1, after)
    return found[:count], len(found) > count


@app.command()
def forget(
    context: typer.Context,
    session: SessionName,
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking first.")] = False,
) -> None:
    """Delete what the server keeps of a session: the body's weights, optimizer and log.

    A device that still has its state folder can't go on with it afterwards; one with a new folder begins
    at step 0.
    """
    import asyncio

    set_up_logging(context, "warning")
    if not yes:
        typer.confirm(f"Delete the body's state of {session} for good?", abort=True)
    if not asyncio.run(_forget(session, store)):
        raise UserError(f"the store has no session {session}", hint="see `spliteasy status`")
    typer.echo(f"forgot {session}")


@app.command()
def pause(context: typer.Context, session: SessionName, store: StoreOption = None) -> None:
    """Pause a session after the step that it is computing. Nothing is lost.

    No other step begins until `spliteasy session resume`.
    """
    _set_paused(context, session, store, paused=True)
    typer.echo(f"{session}: paused; go on with: spliteasy session resume {session}")


@app.command()
def resume(context: typer.Context, session: SessionName, store: StoreOption = None) -> None:
    """Let a paused session go on. Its device asks every few seconds whether it may."""
    _set_paused(context, session, store, paused=False)
    typer.echo(f"{session}: may go on")


def _set_paused(context: typer.Context, session: str, store: str | None, *, paused: bool) -> None:
    import asyncio

    set_up_logging(context, "warning")

    async def put() -> bool:
        async with store_at(store) as open_store:
            return await open_store.pause(session, paused)

    if not asyncio.run(put()):
        raise UserError(f"the store has no session {session}", hint="see `spliteasy status`")


async def _forget(session: str, store: str | None) -> bool:
    async with store_at(store) as open_store:
        return await open_store.forget(session)
