"""A worker holds the length that a request names against the job before it takes anything for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch

from broker import encode
from broker.protocol import messages as m
from broker.protocol.envelope import decode
from server_worker.replica.direct_body import DirectBody
from server_worker.replica.request_checks import check_evaluation, check_forward
from spliteasy.errors import DataError, WireError
from spliteasy.job import Job
from tests.broker.messages_for_tests import forge, header_of
from tests.device import labelled
from tests.lengths.reader import LONGEST, WIDTH, job_of
from tests.lengths.test_training import DATA
from tests.simulation import toy

ATTEMPT = m.AttemptRef(number=1, nonce="0" * 16)


@cache
def job() -> Job:
    return job_of(single=True)


@cache
def sent() -> m.Forward:
    """The first FORWARD of a device."""
    trainer, _ = toy.both_sides(job(), DATA, "phone-1")
    head = trainer.run_head(1)
    return m.Forward(
        session="reader.phone-1",
        attempt=ATTEMPT,
        step=1,
        samples=head.samples,
        length=head.length,
        targets=1,
        counted=head.counted,
        **m.carried(head.values, *head.targets),
        oldest_checkpoint=0,
    )


def changed(request: m.Forward, **changes: Any) -> m.Forward:
    return request.model_copy(update=changes)


def served(request: m.Forward) -> None:
    """Serve a request as a worker does."""
    check_forward(job(), request, len(encode(request)))
    DirectBody(job(), request.session).forward(request)


def test_what_a_device_sends_is_served() -> None:
    served(sent())


@pytest.mark.parametrize("length", [0, 1, -3, (1 << 20) + 1, 2.5, "9", True])
def test_a_length_that_none_can_be_is_refused_on_the_wire(length: object) -> None:
    data = encode(sent())
    header: Mapping[str, Any] = header_of(data)
    forged = forge(
        {**header, "m": {**header["m"], "length": length}}, data[-(-(12 + size_of(data)) // 64) * 64 :]
    )
    with pytest.raises(WireError, match="length"):
        decode(forged)


def size_of(data: bytes) -> int:
    return int.from_bytes(data[8:12], "little")


@pytest.mark.parametrize(
    "length", [None, LONGEST + 1, 1 << 20], ids=["no length", "one too long", "the longest of all"]
)
def test_a_length_that_the_job_has_not_is_refused_before_anything_is_taken(length: int | None) -> None:
    with pytest.raises(DataError, match=r"2 to 9"):
        check_forward(job(), changed(sent(), length=length), 1000)
    asked = m.Eval(session="reader.phone-1", attempt=ATTEMPT, step=0, samples=2, length=length, values=())
    with pytest.raises(DataError, match=r"2 to 9"):
        check_evaluation(job(), asked, 1000)


@pytest.mark.parametrize("other", [2, LONGEST - 1])
def test_a_length_unlike_the_values_is_refused(other: int) -> None:
    request = sent()
    assert request.length not in (None, other)
    with pytest.raises(DataError, match="shape"):
        served(changed(request, length=other))
    targets = torch.zeros(request.samples, other, dtype=torch.int64)
    with pytest.raises(DataError, match="expected shape"):
        served(changed(request, length=other, values=(*request.values[:-1], targets)))


def test_values_of_two_lengths_are_refused() -> None:
    request = sent()
    assert request.length is not None
    hidden = torch.zeros(request.samples, request.length + 1, WIDTH)
    values = tuple(
        hidden if isinstance(value, torch.Tensor) and value.dim() == 3 else value for value in request.values
    )
    with pytest.raises(DataError, match="expected shape"):
        served(changed(request, values=values))


def test_a_length_where_the_job_has_none_is_refused() -> None:
    fixed = labelled.job_of({"name": "cross_entropy"}, micro_batches=1)
    asked = m.Eval(session="labelled.phone-1", attempt=ATTEMPT, step=0, samples=2, length=5, values=())
    with pytest.raises(DataError, match="no length of their own"):
        check_evaluation(fixed, asked, 1000)


def test_bytes_are_held_against_the_length_that_is_there() -> None:
    """A request of short samples may not be as large as one of the longest."""
    short = changed(
        sent(), length=2, values=(*sent().values[:-1], torch.zeros(sent().samples, 2, dtype=torch.int64))
    )
    with pytest.raises(DataError, match="at most"):
        check_forward(job(), short, 1 << 22)
