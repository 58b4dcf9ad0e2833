"""`spliteasy parity`: is split training the same training, to the last bit?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError
from spliteasy_cli.commands.keys import StoreKeyOption, store_keys
from spliteasy_cli.commands.submit import JobFile
from spliteasy_cli.commands.train import PartitionOption
from spliteasy_cli.options.fixed_secret import SecretOption, fixed_secret
from spliteasy_cli.options.threads import DEFAULT_THREADS, ThreadsOption, torch_threads
from spliteasy_cli.support.endpoints import BrokerOption, StoreOption, find_url
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.runner import run

if TYPE_CHECKING:
    from spliteasy_cli.support.comparison import Comparison

EXIT_DIFFERENT = 1
SHOWN = 12


def parity(
    context: typer.Context,
    job_file: JobFile,
    steps: Annotated[int, typer.Option(min=1, help="The number of steps that each device trains.")] = 30,
    devices: Annotated[
        int, typer.Option(min=1, max=64, help="The number of devices; they are named phone-1 and on.")
    ] = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Workers of this process beside those that serve the broker.",
            show_default="2 embedded, 0 on a broker",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="The devices' data, as `train` takes it.", show_default="as for `train`"),
    ] = None,
    broker: BrokerOption = None,
    store: StoreOption = None,
    store_key: StoreKeyOption = None,
    stack: Annotated[
        bool, typer.Option("--stack", help="Train on the local stack's broker, store and workers.")
    ] = False,
    fleet: Annotated[
        bool,
        typer.Option("--fleet", help="The job must have rounds; they are compared with federated averaging."),
    ] = False,
    faults: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="SEED",
            help="Kill agents and workers of the fleet, and cut links, as this seed draws it.",
            show_default=False,
        ),
    ] = None,
    partition: PartitionOption = None,
    secret: SecretOption = None,
    threads: ThreadsOption = DEFAULT_THREADS,
) -> None:
    """Train through broker and store, and by plain PyTorch in one process; compare every tensor.

    Without --broker and --store (or --stack) it uses embedded ones. The last line is `max_abs_diff=0`;
    exits with 1 on any difference.
    """
    set_up_logging(context, "warning")
    if stack:
        broker, store = find_url("broker", broker), find_url("store", store)
    elif (broker is None) != (store is None):
        raise UserError("parity needs both --broker and --store, or neither", hint="neither: embedded ones")
    from spliteasy_cli.fleets.faults import Faults
    from spliteasy_cli.support.comparison import compare, prepare, why_different

    keys = store_keys(store_key, store or "")
    fixed = fixed_secret(secret)
    if faults is not None and not fleet:
        raise UserError(
            "--faults is for fleets, whose decisions are on record", hint="add --fleet, or see `make chaos`"
        )
    drawn = None if faults is None else Faults(faults)
    with torch_threads(threads), TemporaryDirectory(prefix="spliteasy-parity-") as folder:
        plan = prepare(job_file, steps, devices, data, Path(folder), fixed, partition=partition, faults=drawn)
        if fleet and not plan.job.spec.fleet.has_rounds:
            raise UserError(
                f"{job_file} has no rounds to compare", hint='set [fleet] mode = "splitfed" in it'
            )
        comparisons = run(
            lambda stop: compare(plan, broker, store, keys, workers, stop),
            on_stop="stopping: nothing is compared",
        )
    show(comparisons)
    if drawn is not None:
        typer.echo("faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(drawn.counts.items())))
    worst = max((max(c.differences.values()) for c in comparisons), default=float("inf"))
    spec = plan.job.spec
    may_end_early = spec.fleet.has_rounds or spec.evaluation.judges
    whole = all(c.step == steps or may_end_early for c in comparisons)
    same = worst == 0 and whole and not any(c.unequal_bits for c in comparisons)
    if not same and (why := why_different(plan)) is not None:
        typer.echo(f"expected here: {why}")
    typer.echo(f"max_abs_diff={worst:g}")
    if not same:
        raise typer.Exit(EXIT_DIFFERENT)


def show(comparisons: Sequence[Comparison]) -> None:
    """Print the largest difference of every tensor."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    grid = Table(title="Largest absolute difference to plain PyTorch", title_justify="left")
    grid.add_column("tensor", overflow="fold")
    for comparison in comparisons:
        grid.add_column(f"{comparison.device}, step {comparison.step}", justify="right")
    for name in sorted({name for comparison in comparisons for name in comparison.differences}):
        grid.add_row(name, *(f"{comparison.differences[name]:g}" for comparison in comparisons))
    console.print(grid)
    for comparison in comparisons:
        for name in comparison.unequal_bits:
            typer.echo(f"{comparison.device}: the bits of {name} differ")
