"""How a command logs: the level asked for, or the command's own default."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spliteasy.observability import logs

if TYPE_CHECKING:
    import typer


def set_up_logging(context: typer.Context, default: str) -> None:
    """Configure logging; what `--debug` or `--log-level` said is the context's object."""
    logs.configure(context.obj or default)
