"""The gate on the digits job as it ships: what following head and tail gives where both begin secret."""

from __future__ import annotations

import asyncio

from spliteasy.job import load_job_file
from spliteasy.job.spec import PrivacySpec
from spliteasy.privacy.record import Adversary
from spliteasy_cli.leakage.gate import Measured, Row, measure, short_gate, told
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


def test_a_reader_of_the_store_reads_labels_where_it_is_not_sealed_and_nothing_where_it_is() -> None:
    spec = load_job_file(DIGITS).model_copy(update={"privacy": PrivacySpec(ends="public")})

    def rows(*, sealed: bool) -> dict[tuple[str, str], Row]:
        who, attacks = [Adversary.WORKER, Adversary.STORE], ["tail-tracking", "head-tracking"]
        measured = asyncio.run(
            measure(spec, ROOT, DATA, adversaries=who, attacks=attacks, steps=8, sealed=sealed)
        )
        return {(row.adversary, row.score.limit if row.score else row.attack): row for row in measured.rows}

    read = rows(sealed=False)[Adversary.STORE, "label_recovery"].score
    assert read is not None
    assert read.value == 1.0
    found = rows(sealed=True)
    for attack in ("tail-tracking", "head-tracking"):
        assert found[Adversary.STORE, attack].why_not == "it sees nothing of this training"
    whole = found[Adversary.WORKER, "label_recovery"].score
    assert whole is not None
    assert whole.value == 1.0


def test_another_device_sees_nothing() -> None:
    measured = asyncio.run(
        measure(load_job_file(DIGITS), ROOT, DATA, adversaries=[Adversary.MEMBER], steps=1)
    )
    (row,) = measured.rows
    assert row.verdict == "not tried"
    assert row.why_not == "no message of this device reaches it"
