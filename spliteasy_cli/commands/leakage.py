"""`spliteasy leakage`: what can be computed from what crosses the cut, measured by attacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError
from spliteasy_cli.commands.submit import JobFile
from spliteasy_cli.options.threads import DEFAULT_THREADS, ThreadsOption, torch_threads
from spliteasy_cli.options.verdicts import DEFAULT_VERDICTS, VerdictsOption
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.runner import run

if TYPE_CHECKING:
    import asyncio

    from spliteasy.job import JobSpec
    from spliteasy.privacy.record import Adversary
    from spliteasy_cli.leakage.gate import Measured, Row

EXIT_VIOLATIONS = 1
EXIT_STOPPED = 130
WHO = ("worker", "active", "store", "member", "holder")
PICTURE = "leakage.png"
WIDTH = 160
"""Columns of the table where no terminal says its width."""


AdversaryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adversary", help=f"Who looks: {', '.join(WHO)}, or all. May be repeated.", show_default="worker"
    ),
]
CutsOption = Annotated[
    str, typer.Option("--cuts", help='"own", or "all": other first cuts and other second cuts as well.')
]
AttackOption = Annotated[
    list[str] | None,
    typer.Option("--attack", help="Run only this attack. May be repeated.", show_default="all"),
]
ShortOption = Annotated[
    bool,
    typer.Option("--short", help="Print two lines: what following head and tail gives. Takes some seconds."),
]


def leakage(
    context: typer.Context,
    job_file: JobFile,
    adversary: AdversaryOption = None,
    cuts: CutsOption = "own",
    attack: AttackOption = None,
    data: Annotated[
        str | None,
        typer.Option(help="The devices' data, as `train` takes it.", show_default="as for `train`"),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, max=100_000, help="The number of steps that are recorded.")
    ] = 48,
    short: ShortOption = False,
    sealed: Annotated[
        bool, typer.Option("--sealed", help="Seal the store, as `make up` does: what is left to its readers.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The folder for the picture.", show_default="runs/JOB-leakage")
    ] = None,
    verdicts: VerdictsOption = DEFAULT_VERDICTS,
    threads: ThreadsOption = DEFAULT_THREADS,
) -> None:
    """Train on a sample, record the wire, and let attacks compute labels and inputs from it.

    Nothing leaves this machine: agent, worker, broker and store are embedded. A tenth of the labels are
    drawn at random (canaries). The last line is `violations=N`, the scores beyond [privacy.limits] of the
    job file; the command exits with 1 where there are any. The verdict on each pair of cuts is kept:
    submit, status and the dashboard show that of their version, and plan proposes no cut that broke a limit.
    """
    set_up_logging(context, "warning")
    from spliteasy.job import load_job_file
    from spliteasy.privacy.record import Adversary
    from spliteasy.runtime.user_code import project_root
    from spliteasy_cli.commands.train import default_data
    from spliteasy_cli.leakage.gate import SHORT_STEPS, TRACKING, attacks_named
    from spliteasy_cli.leakage.outcome import keep

    who = [Adversary(each) for each in _adversaries(adversary or ["worker"])]
    if cuts not in ("own", "all"):
        raise UserError(f"--cuts {cuts!r} is not known", hint="use own or all")
    if short:
        attack, steps = attack or list(TRACKING), min(steps, SHORT_STEPS)
    attacks = attack or []
    attacks_named(attacks)
    root, spec = project_root(job_file), load_job_file(job_file)
    source = data or default_data(spec, root)
    with torch_threads(threads):
        measured = run(
            lambda stop: _measure(
                spec, root, source, who, attacks, steps, every=cuts == "all", sealed=sealed, stop=stop
            ),
            on_stop="stopping after the attack that is running",
        )
    for one in reversed(measured):  # the job's own cuts last: the newest verdict is theirs
        keep(spec.name, one, verdicts)
    _report(measured, None if short else (out or Path("runs") / f"{spec.name}-leakage") / PICTURE)


def _report(measured: Sequence[Measured], picture: Path | None) -> None:
    """Print the scores, draw the picture (without one: two lines), and end with the count of violations."""
    from spliteasy_cli.leakage.gate import told

    rows = [row for one in measured for row in one.rows]
    if picture is None:
        for line in told(rows):
            typer.echo(line)
    else:
        show(rows)
        _draw(picture, measured)
    if not all(one.complete for one in measured):
        typer.echo("stopped before the last attack: nothing is decided", err=True)
        raise typer.Exit(EXIT_STOPPED)
    violations = sum(one.violations for one in measured)
    typer.echo(f"violations={violations}")
    if violations:
        raise typer.Exit(EXIT_VIOLATIONS)


def _adversaries(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in (*WHO, "all"):
            raise UserError(f"--adversary {name!r} is not known", hint=f"use {', '.join(WHO)}, or all")
    return list(WHO) if "all" in names else list(dict.fromkeys(names))


async def _measure(
    spec: JobSpec,
    root: Path,
    data: str,
    who: Sequence[Adversary],
    attacks: Sequence[str],
    steps: int,
    *,
    every: bool,
    sealed: bool,
    stop: asyncio.Event,
) -> list[Measured]:
    import asyncio

    from spliteasy.privacy.cuts import other_cuts
    from spliteasy_cli.leakage.gate import measure
    from spliteasy_cli.leakage.outcome import progress

    chosen = await asyncio.to_thread(other_cuts, spec, root) if every else [spec.model.cuts]
    found: list[Measured] = []
    for number, cuts in enumerate(chosen, start=1):
        variant = spec.model_copy(update={"model": spec.model.model_copy(update={"cuts": cuts})})
        title = f"{' | '.join(cuts)} ({number} of {len(chosen)})" if every else " | ".join(cuts)
        with progress(title) as tell:
            found.append(
                await measure(
                    variant,
                    root,
                    data,
                    adversaries=who,
                    attacks=attacks,
                    steps=steps,
                    sealed=sealed,
                    stop=stop,
                    tell=tell,
                )
            )
        if stop.is_set():
            break
    return found


def show(rows: Sequence[Row]) -> None:
    """Print the table: one line a score."""
    from rich.console import Console
    from rich.table import Table

    from spliteasy.privacy.limits import AT_LEAST

    grid = Table(title="What can be computed from what crosses the cut", title_justify="left")
    for column in ("cut", "adversary", "attack", "measure"):
        grid.add_column(column, overflow="fold")
    for column in ("score", "chance", "95 % interval", "limit"):
        grid.add_column(column, justify="right", no_wrap=True)
    grid.add_column("verdict")
    for row in rows:
        names = (" | ".join(row.cuts), row.adversary.value, row.attack)
        score = row.score
        if score is None:
            grid.add_row(*names, "", "", "", "", "", f"not tried: {row.why_not}")
            continue
        sign = "≥" if score.limit in AT_LEAST else "≤"
        grid.add_row(
            *names,
            score.limit,
            f"{score.value:z.4f}",
            f"{score.chance:.4f}",
            f"{score.low:.4f} – {score.high:.4f}",
            "" if row.limit is None else f"{sign} {row.limit:g}",
            row.verdict,
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(grid)


def _title(row: Row) -> str:
    return f"{row.attack}, {row.adversary}: {' | '.join(row.cuts)}"


def _draw(path: Path, measured: Sequence[Measured]) -> None:
    """Write the picture of the best reconstructions, where there are any that are images."""
    from spliteasy.privacy import picture

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        drawn = picture.draw(
            path,
            [
                (_title(row), row.reconstruction, one.recording.truth)
                for one in measured
                for row in one.rows
                if row.reconstruction is not None
            ],
        )
    except ModuleNotFoundError as missing:
        typer.echo(f"no picture: {missing.name} is not installed (pip install 'spliteasy[demo]')", err=True)
        return
    if drawn:
        typer.echo(f"the best reconstructions beside the originals: {path}")
