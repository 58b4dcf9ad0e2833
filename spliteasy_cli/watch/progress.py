"""Live progress of a training: a table that updates in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from spliteasy.runtime.readable import size, span
from spliteasy_cli.history.report import DeviceRun, number

REFRESH_PER_S = 6
LINE_EVERY_S = 2.0


class ProgressBoard:
    """Shows the runs while it is entered. `DeviceRun`s are changed by others; `tell` marks a moment."""

    def __init__(self, runs: Sequence[DeviceRun], *, title: str, console: Console | None = None) -> None:
        self._runs = runs
        self._title = title
        self._console = console or Console(stderr=False)
        self._live: Live | None = None
        self._told_at: dict[str, float] = {}

    def __enter__(self) -> ProgressBoard:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._table,
                console=self._console,
                refresh_per_second=REFRESH_PER_S,
                redirect_stdout=False,
            )
            self._live.__enter__()
        else:
            self._print(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def tell(self, run: DeviceRun, *, now: bool = False) -> None:
        """Something changed. Without a terminal it prints a line a device every few seconds, or `now`."""
        if self._live is not None:
            return
        moment = time.monotonic()
        if now or moment - self._told_at.get(run.device, 0.0) >= LINE_EVERY_S:
            self._told_at[run.device] = moment
            self._print(line(run))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        grid = Table(title=self._title, title_justify="left")
        grid.add_column("device")
        grid.add_column("state")
        for column in ("step", "loss", "accuracy", "samples/s", "up", "down", "left"):
            grid.add_column(column, justify="right")
        for run in self._runs:
            grid.add_row(run.device, run.state, *_cells(run))
        return grid


def line(run: DeviceRun) -> str:
    """One device's standing as a plain line."""
    step, loss, accuracy, rate, up, down, left = _cells(run)
    return (
        f"{run.device}  {run.state}  step {step}  loss {loss}  accuracy {accuracy}  "
        f"{rate} samples/s  up {up}  down {down}{'  left ' + left if left else ''}"
    )


def _cells(run: DeviceRun) -> tuple[str, ...]:
    return (
        f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step),
        number(run.train_loss, ".4f"),
        number(run.test_accuracy, ".4f"),
        format(run.samples_per_s, ",.0f"),
        size(run.bytes_up),
        size(run.bytes_down),
        _left(run),
    )


def _left(run: DeviceRun) -> str:
    """`about 3 min, 1.5 MB`; empty before there is a step to tell by, and after the last."""
    seconds, nbytes = run.seconds_left, run.bytes_left
    parts = [] if seconds is None else [f"about {span(seconds)}"]
    return ", ".join(parts if nbytes is None else [*parts, size(nbytes)])
