"""`spliteasy forget`: delete a session's state on the server."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from spliteasy.cli.connecting import StoreOption, store_at
from spliteasy.cli.logging import set_up_logging
from spliteasy.errors import UserError


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


async def _forget(session: str, store: str | None) -> bool:
    async with store_at(store) as open_store:
        return await open_store.forget(session)
