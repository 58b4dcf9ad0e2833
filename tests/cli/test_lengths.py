"""Training on samples with lengths, through broker and store, ends in the bits of plain PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT, Ran
from tests.lengths.reader import settings

DATA = ("--data", "tests.lengths.reader:device_data")
LAST_SAME = "max_abs_diff=0"


def written(folder: Path, **changes: Any) -> Path:
    """A job file with these settings."""
    lines: list[str] = []
    tables = {key: value for key, value in settings(**changes).items() if isinstance(value, dict)}
    top = {key: value for key, value in settings(**changes).items() if key not in tables}
    lines += [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for name, table in tables.items():
        lines.append(f"[{name}]")
        inner = {key: value for key, value in table.items() if isinstance(value, dict)}
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items() if key not in inner]
        for key, values in inner.items():
            lines.append(f"[{name}.{key}]")
            lines += [f"{each} = {json.dumps(value)}" for each, value in values.items()]
    file = folder / "job.toml"
    file.write_text("\n".join(lines))
    return file


def test_embedded(spliteasy: Callable[..., Ran], tmp_path: Path) -> None:
    job = written(tmp_path, micro_batches=3, model={"factory": "tests.lengths.reader:with_dropout"})
    ran = spliteasy("parity", job, *DATA, "--steps", 6, "--devices", 2)
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.splitlines()[-1] == LAST_SAME


@pytest.mark.rabbitmq
@pytest.mark.redis
@pytest.mark.parametrize("single", [False, True], ids=["two cuts", "one cut"])
def test_on_rabbitmq_and_redis(
    single: bool, rabbitmq_url: str, redis_url: str, spliteasy: Callable[..., Ran], tmp_path: Path
) -> None:
    job = written(tmp_path, micro_batches=2, single=single)
    there = ("--broker", rabbitmq_url, "--store", redis_url, "--workers", 2)
    ran = spliteasy("parity", job, *DATA, "--steps", 6, "--devices", 2, *there)
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.splitlines()[-1] == LAST_SAME


def test_of_a_frozen_base_that_was_trained_before(spliteasy: Callable[..., Ran]) -> None:
    job = ROOT / "examples/transfer/job.toml"
    ran = spliteasy("parity", job, "--data", "examples.transfer.data:device_data", "--steps", 4)
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.splitlines()[-1] == LAST_SAME
