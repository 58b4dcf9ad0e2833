"""Live progress of a training: a table that updates in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from spliteasy.runtime.readable import size, span
from spliteasy_cli.history.report import MANY_DEVICES, DeviceRun, number

REFRESH_PER_S = 6
LINE_EVERY_S = 2.0
DONE, WAITING = "done", "waiting"
"""An agent tells the first once it has ended; what it tells where it waits begins with the second."""


class ProgressBoard:
    """Shows the runs while it is entered. `DeviceRun`s are changed by others; `tell` marks a moment."""

    def __init__(self, runs: Sequence[DeviceRun], *, title: str, console: Console | None = None) -> None:
        self._runs = runs
        self._title = title
        self._console = console or Console(stderr=False)
        self._live: Live | None = None
        self._told_at: dict[str, float] = {}
        self._many = len(runs) > MANY_DEVICES

    def __enter__(self) -> ProgressBoard:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._together if self._many else self._table,
                console=self._console,
                refresh_per_second=1 if self._many else REFRESH_PER_S,
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
        """Something changed. Without a terminal it prints a line a device every few seconds, or `now`; a line
        for all of them where they are many."""
        if self._live is not None:
            return
        moment, who = time.monotonic(), "" if self._many else run.device
        if (now and not self._many) or moment - self._told_at.get(who, 0.0) >= LINE_EVERY_S:
            self._told_at[who] = moment
            self._print(line_of_all(self._runs) if self._many else line(run))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _together(self) -> str:
        return f"{self._title}\n{line_of_all(self._runs)}"

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


def line_of_all(runs: Sequence[DeviceRun]) -> str:
    """Return the standing of many devices as one plain line."""
    done = sum(run.state == DONE for run in runs)
    waiting = sum(run.state.startswith(WAITING) for run in runs)
    losses = [run.train_loss for run in runs if run.train_loss is not None]
    accuracies = [run.test_accuracy for run in runs if run.test_accuracy is not None]
    rounds = [run.round for run in runs if run.round is not None]
    parts = [
        f"{len(runs)} devices: {len(runs) - waiting - done} at work, {waiting} waiting, {done} done",
        *([f"round {max(rounds)}"] if rounds else []),
        f"{sum(run.step for run in runs)} steps in all",
        f"median loss {number(median(losses) if losses else None, '.4f')}",
        f"accuracy {number(min(accuracies, default=None), '.4f')} least, "
        f"{number(median(accuracies) if accuracies else None, '.4f')} median",
        f"up {size(sum(run.bytes_up for run in runs))}",
        f"down {size(sum(run.bytes_down for run in runs))}",
    ]
    return "  ".join(parts)


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
