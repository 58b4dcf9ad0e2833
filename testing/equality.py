"""The equality that everything is held to: a split training has the bits of plain PyTorch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

from server_worker.store import StoreKeys
from spliteasy_cli.support.comparison import compare, prepare


def assert_parity(
    job_file: Path | str,
    *,
    steps: int = 4,
    devices: int = 1,
    data: str | None = None,
    partition: str | None = None,
) -> None:
    """Train the job split, through a broker and a store of this process, and by plain PyTorch.

    Raises AssertionError that names each tensor whose bits differ, and UserError for a job that can't be
    compared. It is `spliteasy parity` as a function.
    """
    with TemporaryDirectory(prefix="spliteasy-parity-") as folder:
        plan = prepare(Path(job_file), steps, devices, data, Path(folder), partition=partition)
        compared = asyncio.run(compare(plan, None, None, StoreKeys(), None, asyncio.Event()))
    for each in compared:
        unequal = {name: value for name, value in each.differences.items() if value} | dict.fromkeys(
            each.unequal_bits, 0.0
        )
        assert not unequal, f"{each.device}, step {each.step}: other bits than plain PyTorch in {unequal}"
