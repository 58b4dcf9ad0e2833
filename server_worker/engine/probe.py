"""The probe tells machines apart: the digest of one step of a job's body on fixed inputs, at its batch sizes.

Two machines whose kernels, threads or libraries differ may give other bits for the same step. Names and
versions do not tell (the same capability has several kernels), so the step itself is taken.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from threading import Lock

import torch
from torch import Tensor

from server_worker.config import environment
from spliteasy.graph.document import Value, ValueSpec
from spliteasy.job import Job
from spliteasy.job.micro_batches import micro_sizes
from spliteasy.runtime.accelerator import description, is_lost, to_processor
from spliteasy.runtime.torch_thread import finds_no_memory
from spliteasy.training.digest import digest_of
from spliteasy.training.segment_trainer import SegmentTrainer

KEPT = 256
"""Jobs whose digest is remembered."""

_PROBED = re.compile(r", probe ([0-9a-f]{32})$")
_ON = re.compile(r", on ([^(]+) \(")
"""The accelerator's name and capability; a CPU has neither."""
_known: OrderedDict[tuple[str, str], str] = OrderedDict()
"""By the job's digest and the processor."""
_probing = Lock()


def environment_of(job: Job) -> str:
    """Tell in one line what decides the bits of this job here; the digest of the probe is at its end."""
    processor = job.body.processor
    key = (job.digest, str(processor))
    with _probing:
        if key not in _known:
            _known[key] = f"{environment()}{description(processor)}, probe {_probe(job)}"
            while len(_known) > KEPT:
                _known.popitem(last=False)
        return _known[key]


def alike(stored: str, own: str) -> bool:
    """Return whether both name the same probe and kind of processor.

    A small step may have the same bits on two kinds of processors, and the next not. An environment without
    a probe, as earlier versions wrote it, is like all of its kind.
    """
    if _kind(stored) != _kind(own):
        return False
    one, other = _PROBED.search(stored), _PROBED.search(own)
    return one is None or other is None or one[1] == other[1]


def _kind(line: str) -> str:
    found = _ON.search(line)
    return found[1] if found is not None else ""


def _probe(job: Job) -> str:
    trainer = SegmentTrainer(job.body.spawn(), job.spec, device="probe", role="body")
    generator = torch.Generator().manual_seed(0)
    seen: list[Tensor | int | None] = []
    try:
        for micro, samples in enumerate(
            sorted(set(micro_sizes(job.spec.batch_size, job.spec.micro_batches)))
        ):
            specs, length = trainer.segment.input_values, job.spec.model.max_length or 0
            values = [_value(spec, samples, length, generator) for spec in specs]
            opened = trainer.forward(to_processor(values, job.body.processor), micro=micro)
            gradients = to_processor(
                [
                    torch.randn(output.shape, generator=generator).to(output.dtype)
                    if isinstance(output, Tensor) and output.requires_grad
                    else None
                    for output in opened.outputs
                ],
                job.body.processor,
            )
            seen += [*opened.outputs, *trainer.backward(opened, gradients)]
        trainer.apply()
        return digest_of([*seen, *trainer.moving()])
    except RuntimeError as error:
        if finds_no_memory(error) or is_lost(error):
            raise
        return digest_of([len(seen)])  # a body that can't take these inputs can't on a machine like this one


def _value(spec: ValueSpec, samples: int, length: int, generator: torch.Generator) -> Value:
    """Return a value of the cut: normal numbers, or zeros, which are an index of everything."""
    if spec.is_int:
        return spec.value_for(samples, length)
    shape = spec.shape_for(samples, length)
    if spec.torch_dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.torch_dtype)
    return torch.zeros(shape, dtype=spec.torch_dtype)
