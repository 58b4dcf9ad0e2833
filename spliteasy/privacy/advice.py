"""Find the limits that a job can't keep to, as far as its cut tells without a training."""

from __future__ import annotations

from dataclasses import dataclass

from spliteasy.graph.segment import Segment
from spliteasy.job import Job
from spliteasy.job.spec import LimitsSpec


@dataclass(frozen=True, slots=True)
class Advice:
    """One reason why a limit won't hold."""

    why: str
    hint: str


def advice(job: Job, limits: LimitsSpec) -> list[Advice]:
    """Why limits can't be kept; empty where nothing speaks against them, which proves nothing."""
    return [*_labels(job, limits), *_inputs(job, limits)]


def bounds_labels(limits: LimitsSpec) -> bool:
    """Return whether labels may be recovered in part only."""
    bounds = (limits.label_recovery, limits.canary_recovery)
    return any(limit is not None and limit < 1 for limit in bounds)


def bounds_inputs(limits: LimitsSpec) -> bool:
    """Return whether reconstructed inputs must be in error."""
    return limits.input_mse is not None and limits.input_mse > 0


def _labels(job: Job, limits: LimitsSpec) -> list[Advice]:
    if not bounds_labels(limits):
        return []
    limit = "[privacy.limits] of labels can't be kept"
    tail = job.tail
    if tail is None:
        return [Advice(f"{limit}: with one cut the worker is sent the labels", "name two cuts")]
    layers = matrices(tail)
    if not layers:
        return [
            Advice(
                f"{limit}: the tail has no weights, so that the signs of the gradients tell every label",
                "put the second cut before a layer with weights",
            )
        ]
    found = []
    if layers == 1:
        found.append(
            Advice(
                f"{limit}: the tail is one layer, and the directions of its gradients tell the classes apart",
                "put the second cut further to the front, and measure with `spliteasy leakage`",
            )
        )
    if is_public(job, tail):
        found.append(
            Advice(
                f"{limit}: the tail's initial weights are in the job package, so that a worker can follow it",
                'train the tail from scratch, or set [privacy] ends = "perturb"',
            )
        )
    return found


def _inputs(job: Job, limits: LimitsSpec) -> list[Advice]:
    if not bounds_inputs(limits):
        return []
    limit = "[privacy.limits] input_mse can't be kept"
    layers = matrices(job.head)
    if job.spec.share_inputs:
        return [
            Advice(f"{limit}: {job.spec.share_inputs[0]!r} is sent as it is", "take it from share_inputs")
        ]
    if layers and is_public(job, job.head):
        return [
            Advice(
                f"{limit}: the head's initial weights are in the job package, so that a worker can follow it",
                'train the head from scratch, or set [privacy] ends = "perturb"',
            )
        ]
    if layers <= 1:
        return [
            Advice(
                f"{limit}: a head of {layers or 'no'} layer{'' if layers == 1 else 's'} with weights can be "
                "found together with its inputs",
                "put the first cut behind more layers, and measure with `spliteasy leakage`",
            )
        ]
    return []


def matrices(segment: Segment) -> int:
    """Weights of two dimensions or more: layers, as a rule."""
    return sum(spec.kind == "parameter" and len(spec.shape) > 1 for spec in segment.program.document.tensors)


def is_public(job: Job, segment: Segment) -> bool:
    """Return whether every weight matrix of the segment has its initial values in the job package."""
    if job.spec.privacy.ends == "perturb":
        return False
    drawn = job.ends.of(segment.name)
    names = [
        spec.name
        for spec in segment.program.document.tensors
        if spec.kind == "parameter" and len(spec.shape) > 1
    ]
    return bool(names) and not any(name in drawn for name in names)
