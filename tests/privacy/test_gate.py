"""The gate where there is nothing to see."""

from __future__ import annotations

import asyncio

from spliteasy.job import load_job_file
from spliteasy.privacy.record import Adversary
from spliteasy_cli.leakage.gate import measure
from tests.privacy.conftest import DATA, DIGITS, ROOT


def test_another_device_sees_nothing() -> None:
    measured = asyncio.run(
        measure(load_job_file(DIGITS), ROOT, DATA, adversaries=[Adversary.MEMBER], steps=1)
    )
    (row,) = measured.rows
    assert row.verdict == "not tried"
    assert row.why_not == "no message of this device reaches it"
