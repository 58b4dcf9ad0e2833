"""The number of threads that torch computes with. It is part of what makes a run bit-identical, so it is
always explicit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

ThreadsOption = Annotated[
    int,
    typer.Option(
        "--threads",
        min=1,
        envvar="SPLITEASY_THREADS",
        help="Threads that torch computes with. The same bits need the same number.",
    ),
]

DEFAULT_THREADS = 1


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads while it is entered."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
