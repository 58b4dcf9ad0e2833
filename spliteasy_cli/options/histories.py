"""`--history`, `--tensorboard` and `--mlflow`: where a command writes down what happens in a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError

if TYPE_CHECKING:
    from spliteasy_cli.history.run_history import Kept

HistoryOption = Annotated[
    Path | None,
    typer.Option(
        "--history",
        metavar="DIR",
        help="Write every step, evaluation and event here, as JSON lines.",
        show_default=False,
    ),
]
TensorboardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Write TensorBoard events beside the history's JSON lines.")
]
MlflowOption = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        envvar="SPLITEASY_MLFLOW",
        metavar="URI",
        help="Keep the run's history in MLflow too: http://server:5000; sqlite:///x.db needs all of mlflow.",
        show_default=False,
    ),
]


def histories(
    folder: Path | None, tensorboard: bool, mlflow: str | None, *, job: str, digest: str = "", fresh: bool
) -> list[Kept]:
    """Return the histories that the options ask for. `fresh` begins a new MLflow run. Raises UserError."""
    from spliteasy_cli.history.mlflow_history import MlflowHistory
    from spliteasy_cli.history.run_history import History

    if folder is None and tensorboard:
        raise UserError("--tensorboard goes with a history", hint="name its folder with --history DIR")
    kept: list[Kept] = [] if folder is None else [History(folder, tensorboard=tensorboard)]
    if mlflow is not None:
        kept.append(MlflowHistory(mlflow, job, digest, fresh=fresh))
    return kept
