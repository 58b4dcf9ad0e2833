"""A body that several devices train at once: a step of it takes the gradients of a window's devices.

The step is a pure function of the body before and of what the window's record names, so that any worker takes
it again to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from server_worker.engine.body_trainer import BODY
from server_worker.rounds.ends import SEALED, handed_in
from spliteasy.fleet.mean import weighted_mean
from spliteasy.fleet.record import RoundRecord
from spliteasy.fleet.sealed import added_up
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes
from spliteasy.job import Job
from spliteasy.runtime.accelerator import on_host
from spliteasy.training.private_trainer import segment_trainer
from spliteasy.training.segment_trainer import (
    GRADIENT_PREFIX,
    MODEL_PREFIX,
    OPTIMIZER_PREFIX,
    REBASES_KEY,
    STEP_KEY,
    under,
)


def window_step(job: Job, record: RoundRecord, bodies: Mapping[str, bytes], before: bytes) -> bytes:
    """Return the body after the window, with its optimizer: one step by the mean of the gradients.

    Running statistics become the mean of those that the devices' batches gave.
    """
    parts = {
        device: (record.weights[device], _of_body(handed_in(bodies, device, handed.digest, record.number)))
        for device, handed in record.participants.items()
    }
    mean = weighted_mean(parts)
    trainer = segment_trainer(job.body.spawn(), job.spec, device="", role="body")
    if before:
        counted = {STEP_KEY: torch.tensor(0), REBASES_KEY: torch.tensor(1)}
        trainer.load_state({**_of_body(tensors_from_bytes(before)), **counted}, step=0)
    trainer.rebases = 0
    trainer.apply_given(under(GRADIENT_PREFIX, mean), under(MODEL_PREFIX, mean), scheduled=record.steps - 1)
    kept = (MODEL_PREFIX, OPTIMIZER_PREFIX)
    state = {BODY + name: x for name, x in trainer.state().items() if name.startswith(kept)}
    return tensors_to_bytes(on_host(state))


def ends_mean(job: Job, record: RoundRecord, bodies: Mapping[str, bytes]) -> bytes:
    """Return the mean of the ends of those that ended the round; of sealed ones their sum."""
    parts, sealed = {}, list[Tensor]()
    for device, ended in record.ended.items():
        tensors = handed_in(bodies, device, ended.digest, ended.window)
        if SEALED in tensors:
            sealed.append(tensors[SEALED])
        ends = {name: x for name, x in tensors.items() if not name.startswith(BODY) and name != SEALED}
        parts[device] = job.spec.fleet.weight_of(ended.samples), ends
    mean = {SEALED: added_up(sealed)} if sealed else weighted_mean(parts)
    return tensors_to_bytes(mean)


def _of_body(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return under(BODY, tensors)
