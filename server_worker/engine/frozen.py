"""Frozen tensors are held once a process, whatever the number of bodies and jobs that use them.

A tensor is frozen where the optimizer does not train it and no run of the program writes it. Its memory goes
with the last job and body that hold it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from spliteasy.graph.segment import Frozen, Segment
from spliteasy.job import Job
from spliteasy.job.spec import JobSpec
from spliteasy.training.digest import strong_digest
from spliteasy.training.optim import group_of


class FrozenTensors:
    """The frozen tensors of an engine's jobs, by processor, strides and digest."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[str, Tensor] = WeakValueDictionary()

    def shared(self, job: Job) -> Job:
        """Return the job with a body whose frozen tensors all of its bodies share, and other jobs' too.

        The bytes that the body came as are dropped.
        """
        body = job.body
        tensors = body.tensors()
        frozen = {name: self._one(tensors[name].detach()) for name in frozen_of(body, job.spec)}
        return replace(job, body_or_none=body.with_frozen(frozen), parts=job.device_parts())

    def _one(self, tensor: Tensor) -> Frozen:
        digest = strong_digest(tensor)
        # Kernels may sum in another order where strides differ.
        key = f"{tensor.device} {tensor.stride()} {digest}"
        return Frozen(self._known.setdefault(key, tensor), digest)


def frozen_of(body: Segment, spec: JobSpec) -> Iterable[str]:
    """Return the main names of the tensors that no training of the job can change.

    The mean of a round may round a buffer otherwise: buffers are not among them where a job has rounds.
    """
    names = {id(parameter): name for name, parameter in body.named_parameters()}
    tensors = body.tensors()
    for each in body.program.document.tensors:
        if each.name in body.program.written:
            continue
        if each.kind == "parameter":
            group = group_of(spec.optimizer, names[id(tensors[each.name])])
            if not each.requires_grad or (group is not None and group.frozen):
                yield each.name
        elif not spec.fleet.has_rounds:
            yield each.name


def other_base(body: Segment, before: Segment) -> str | None:
    """Say for a person what is frozen in `before` and has other bits in `body`; None where nothing is."""
    own = body.state_dict()
    for spec in before.program.document.tensors:
        frozen = before.frozen.get(spec.name)
        if frozen is not None and spec.name in own and not torch.equal(own[spec.name], frozen.tensor):
            return f"{spec.name} was frozen, and has other values now"
    return None
