"""Commands show how far a run of the gate is, and keep its verdict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from spliteasy_cli.history.verdicts import keep_verdict
from spliteasy_cli.leakage.gate import Measured, Tell, verdict_of


def keep(job: str, measured: Measured, folder: Path) -> None:
    """Write the verdict on a pair of cuts, where no attack was left out by a stop."""
    if measured.complete and not keep_verdict(folder, verdict_of(job, measured)):
        typer.echo("the kept verdict stays: it is of these attacks and of others", err=True)


@contextmanager
def progress(title: str) -> Iterator[Tell]:
    """A bar on standard error where that is a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title)

        def tell(what: str, done: int, of: int) -> None:
            progress.update(task, description=f"{title}: {what}", completed=done, total=of)

        yield tell
