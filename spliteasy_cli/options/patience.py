"""`--give-up-after`: how long a service waits for a broker that it was connected to."""

from __future__ import annotations

from typing import Annotated

import typer

GiveUpOption = Annotated[
    float | None,
    typer.Option(
        "--give-up-after",
        envvar="SPLITEASY_GIVE_UP_AFTER",
        metavar="MINUTES",
        min=0.0,
        help="End when the broker, once connected, was away for so long. A first connection is tried for "
        "10 s, and for a minute where the broker says: not now.",
        show_default="never",
    ),
]


def seconds(minutes: float | None) -> float | None:
    """The option in seconds."""
    return None if minutes is None else minutes * 60.0
