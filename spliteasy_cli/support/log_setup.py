"""Logging of a command, at the level that was asked for or at the command's own default."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def set_up_logging(context: typer.Context, default: str) -> None:
    """Configure logging. The context's object is the level that `--debug` or `--log-level` asked for."""
    from spliteasy.observability import logs

    logs.configure(context.obj or default)
