"""The sizes of a device's request are held against the job before anything is taken for it."""

from __future__ import annotations

from torch import Tensor

from broker.protocol import messages as m
from spliteasy.codecs.packer import bytes_expected, bytes_of, expected_of
from spliteasy.errors import DataError
from spliteasy.job import Job
from spliteasy.job.io_schema import dtype_name
from spliteasy.job.micro_batches import micro_sizes

HEADER_BYTES = 1 << 20
"""The bytes that a request may have beside its values, which no codec makes four times as long."""


def check_forward(job: Job, request: m.Forward, raw_bytes: int) -> None:
    """Raises DataError where the request is no micro-batch of the job's, or too large for one."""
    spec = job.spec
    whole = request.batch or request.samples
    _check_samples(whole, spec.batch_size, "batch_size")
    sizes = micro_sizes(whole, spec.micro_batches)
    if request.samples != dict(enumerate(sizes)).get(request.micro):
        raise DataError(
            f"{request.samples} samples are not micro-batch {request.micro} of a batch of {whole} "
            f"in {len(sizes)}"
        )
    if bool(request.targets) != spec.single or request.targets > len(request.values):
        raise DataError(f"{request.targets} targets arrived in a FORWARD of {request.job}")
    length = _check_length(job, request.length)
    expected = bytes_expected(expected_of(job.body.input_values, request.samples, length))
    if request.targets:
        expected += _check_targets(job, request)
    check_size(request, raw_bytes, expected)


def check_recall(job: Job, request: m.Recall, row_bytes: int) -> None:
    """Raises DataError where the request names more rows than a batch has, or rows that take far more bytes,
    `row_bytes` in all, than the job's values do."""
    _check_samples(request.samples, job.spec.batch_size, "batch_size")
    expected = bytes_expected(expected_of(job.body.input_values, request.samples))
    check_size(request, row_bytes, expected)


def check_evaluation(job: Job, request: m.Eval, raw_bytes: int) -> None:
    """Raises DataError where the request has more samples than an evaluation may have, or is too large."""
    _check_samples(request.samples, job.spec.evaluation.batch_size, "evaluation.batch_size")
    inputs = job.body.program.document.eval.inputs
    length = _check_length(job, request.length)
    check_size(request, raw_bytes, bytes_expected(expected_of(inputs, request.samples, length)))


def check_size(request: m.Forward | m.Recall | m.Backward | m.Eval, raw_bytes: int, expected: int) -> None:
    """Raises DataError where the request takes far more bytes than its values do unpacked, `expected`."""
    most = 4 * expected + HEADER_BYTES
    if raw_bytes > most:
        raise DataError(f"a {request.kind} of {raw_bytes} bytes, where the job's are of {most} at most")


def _check_targets(job: Job, request: m.Forward) -> int:
    """The bytes of the targets; DataError where they are not what the job's data has."""
    targets, specs = request.values[-request.targets :], job.signature.targets
    if len(targets) != len(specs):
        raise DataError(f"{len(targets)} targets arrived, the job has {len(specs)}")
    for target, spec in zip(targets, specs, strict=True):
        shape = (request.samples, *spec.shape_at(request.length or 0))
        if (
            not isinstance(target, Tensor)
            or tuple(target.shape) != shape
            or dtype_name(target.dtype) != spec.dtype
        ):
            raise DataError(f"target {spec.name}: expected {spec.dtype} of shape {shape}")
    return bytes_of(targets)


def _check_length(job: Job, length: int | None) -> int:
    """The length of the samples, 0 where they have none; DataError where the job's can't be so long."""
    longest = job.spec.model.max_length
    if longest is None:
        if length is not None:
            raise DataError(f"samples of length {length}, where the job's have no length of their own")
        return 0
    if length is None or length > longest:
        told = "no length" if length is None else f"a length of {length}"
        raise DataError(f"samples of {told}, where the job's have one of 2 to {longest}")
    return length


def _check_samples(samples: int, most: int, setting: str) -> None:
    if samples > most:
        raise DataError(f"{samples} samples, where the job's {setting} is {most}")
