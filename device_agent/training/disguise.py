"""Before the first step: what this device would send, by its own weights and data, is neither in disguise."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import structlog
import torch
from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.graph.segment import Segment
from spliteasy.job import Job
from spliteasy.privacy.plain_labels import HINT, plain_labels
from spliteasy.splitting.disguise import Disguise, find_disguises, measured_by

log = structlog.get_logger(__name__)

MOST_KEPT = 16
_KEPT: OrderedDict[str, list[Disguise]] = OrderedDict()
"""The disguises found lately, by all that they depend on: devices of one process may have one head, and data
of the same ranges. A device with other weights, or other ranges, is measured by itself."""


def _found(
    head: Segment, inputs: Sequence[Tensor], *, training: bool, shared: Sequence[int]
) -> list[Disguise]:
    hasher = hashlib.sha256(f"{training} {list(shared)} ".encode())
    hasher.update(measured_by(inputs, shared).encode())
    hasher.update(head.graph_json())
    for name, tensor in sorted(head.tensors().items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    key = hasher.hexdigest()
    found = _KEPT.get(key)
    if found is None:
        found = _KEPT[key] = find_disguises(head, inputs, training=training, shared=shared)
        if len(_KEPT) > MOST_KEPT:
            _KEPT.popitem(last=False)
    return found


def warn_of_labels(job: Job) -> None:
    """Say in the log where the gradients that the device sends would be its labels under another name."""
    why = plain_labels(job)
    if why is not None:
        log.warning(why, job=str(job), hint=HINT)


def refuse_disguised(job: Job, head: Segment, inputs: Sequence[Tensor]) -> None:
    """Measure the head on the ranges of the device's own `inputs`, in training and in evaluation.

    Raises JobError where an input that the job does not share would cross element by element; says in the
    log where whole numbers cross through a table.
    """
    names = [value.name for value in job.signature.inputs]
    shared = [place for place, name in enumerate(names) if name in job.spec.share_inputs]
    for mode, training in (("training", True), ("evaluation", False)):
        for found in _found(head, inputs, training=training, shared=shared):
            name = names[found.source]
            value = job.head.program.document.graph(training).outputs[found.place].name
            if found.kind == "lookup":
                log.warning(
                    "whole numbers of an input cross the cut through a table: a worker can count how often "
                    "each comes",
                    input=name,
                    value=value,
                    mode=mode,
                )
                continue
            raise JobError(
                f"job {job} would send {found.share:.0%} of this device's input {name!r} to the worker: in "
                f"{mode}, {value} is the input, each element {found.words}",
                hint=f"the job's author can cut later, or name {name!r} in share_inputs if it may leave",
            )
