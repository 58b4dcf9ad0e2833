"""`--verdicts`: the folder of the gate's last verdict on each job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_VERDICTS = Path("runs") / "verdicts"

VerdictsOption = Annotated[
    Path,
    typer.Option(
        "--verdicts",
        envvar="SPLITEASY_VERDICTS",
        metavar="DIR",
        help="The folder in which `spliteasy leakage` keeps its last verdict on each job.",
    ),
]
