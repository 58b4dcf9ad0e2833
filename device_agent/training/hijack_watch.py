"""Watches what a worker sends back: gradients that come from no honest body train the head for the worker.

The guard of `spliteasy.privacy.hijack` judges the steps of a run; what it finds is said once in the log, or
ends the agent.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import torch
from torch import Tensor

from spliteasy.errors import Hijacked
from spliteasy.job import Job
from spliteasy.privacy.hijack import WINDOW, HijackGuard
from spliteasy.privacy.record import classes_of

log = structlog.get_logger(__name__)

FEATURES = 1 << 14
"""This many elements of a sample's gradient are looked at: directions show in a part of a large one."""


def may_watch(job: Job) -> bool:
    """Return whether the job has what the guard compares: classes, a tail on the device, a head
    that trains."""
    trains = any(spec.requires_grad for spec in job.head.program.document.tensors)
    return job.tail is not None and classes_of(job) is not None and trains


class HijackWatch:
    """Takes each micro-batch's gradients as they are sent and as they come back, and judges whole steps."""

    def __init__(self, job: Job, *, stop: bool) -> None:
        self._job, self._stop = str(job), stop
        self._guard, self._told = HijackGuard(), False
        self._sent: list[Tensor] = []
        self._returned: list[Tensor] = []
        self._labels: list[Tensor] = []

    def sends(self, gradients: Sequence[Tensor | None], labels: Tensor) -> None:
        """The gradients of the body's outputs of a micro-batch, and its classes."""
        self._sent.append(_rows(gradients, len(labels)))
        self._labels.append(labels)

    def gets(self, gradients: Sequence[Tensor | None], samples: int) -> None:
        """The gradients of the head's outputs that came back for the next micro-batch."""
        self._returned.append(_rows(gradients, samples))

    def judge(self, step: int) -> None:
        """A step's gradients are complete. Raises Hijacked where the agent is to stop."""
        micros = [
            each
            for each in zip(self._returned, self._sent, self._labels, strict=True)
            if each[0].shape[1] and each[1].shape[1]  # a micro-batch without labels has no gradient
        ]
        self.forget()
        if micros:
            returned, sent, labels = (torch.cat(each) for each in zip(*micros, strict=True))
            known = labels >= 0
            self._guard.saw(returned[known], sent[known], labels[known])
        if not self._guard.alarm:
            return
        what = (
            f"the gradients that came back in the last {WINDOW} steps know nothing of the classes that the "
            "device's own gradients tell apart: the worker may train the head for a purpose of its own, "
            "to compute this device's inputs"
        )
        if self._stop:
            raise Hijacked(
                f"job {self._job}, step {step}: {what}",
                hint="ask who runs the worker; docs/privacy.md says what the guard can take for a hijacker",
            )
        if not self._told:
            self._told = True
            log.warning(what, job=self._job, step=step, hint="--stop-if-hijacked ends the training instead")

    def forget(self) -> None:
        """The step under way was judged, or does not count."""
        self._sent, self._returned, self._labels = [], [], []


def _rows(gradients: Sequence[Tensor | None], samples: int) -> Tensor:
    """Return a part of each sample's gradient: float32 [samples, features]."""
    flat = [
        g.detach().reshape(samples, -1)
        for g in gradients
        if g is not None and g.dim() and g.shape[0] % samples == 0
    ]
    every = max(1, sum(rows.shape[1] for rows in flat) // FEATURES)
    return torch.cat([rows[:, ::every].float() for rows in flat], 1) if flat else torch.zeros(samples, 0)
