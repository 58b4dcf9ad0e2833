"""The gate on the digits job as it ships: what following head and tail gives where both begin secret."""

from __future__ import annotations

import asyncio

from spliteasy.job import load_job_file
from spliteasy.privacy.record import Adversary
from spliteasy_cli.leakage.gate import Measured, measure, short_gate, told
from tests.privacy.conftest import DATA, DIGITS, ROOT


def test_tracking_finds_next_to_nothing_in_the_default_job() -> None:
    measured: Measured = asyncio.run(short_gate(load_job_file(DIGITS), ROOT, DATA))
    scores = {row.score.limit: row.score for row in measured.rows if row.score is not None}
    assert scores["label_recovery"].value <= 0.20
    assert scores["canary_recovery"].value <= 0.20
    assert scores["input_mse"].value >= 0.05
    labels, inputs = told(measured.rows)
    assert labels.startswith("labels: ")
    assert inputs.startswith("inputs: ")


def test_another_device_sees_nothing() -> None:
    measured = asyncio.run(
        measure(load_job_file(DIGITS), ROOT, DATA, adversaries=[Adversary.MEMBER], steps=1)
    )
    (row,) = measured.rows
    assert row.verdict == "not tried"
    assert row.why_not == "no message of this device reaches it"
