"""Labels in disguise: tails whose gradients tell the labels to somebody who knows none of their weights.

The gradients of the body's outputs, gb, are made of the tail's weights and the labels. Where they are the
same under other weights (a tail without any, most of all), anybody with b and the loss can try labels out.
Where each class has an element of gb that lies apart for its samples, as the sign of a logit's gradient does,
the labels can be read off as they pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spliteasy.errors import SplitEasyError
from spliteasy.graph.document import Value, ValueSpec
from spliteasy.graph.segment import Segment
from spliteasy.job import Job
from spliteasy.privacy.record import classes_of
from spliteasy.runtime.generators import seed_all, states_kept
from spliteasy.splitting.weightless import with_other_weights
from spliteasy.training.losses import CLASS_LOSSES
from spliteasy.training.segment_trainer import backward_from, tensors_of

SAMPLES = 32
_SEED = 7177
_SAME = 1e-4
HINT = "put the second cut before a layer with weights; docs/privacy.md says what else a gradient tells"


def plain_labels(job: Job) -> str | None:
    """Why labels would cross in disguise with the gradients, as far as made-up values show it; else None.

    Nothing is said of a job with one cut, whose labels are shared, nor where `[privacy]` changes labels or
    gradients: what that leaves is for attacks to measure.
    """
    settings = job.spec.privacy
    if job.tail is None or settings.label_dp is not None or settings.noisy_gradients:
        return None
    with states_kept():
        generator = torch.Generator().manual_seed(_SEED)
        tail = _with_values(job.tail, generator).train()
        values = [_made_up(spec, generator, job.spec.model.max_length or 0) for spec in tail.input_values]
        head = job.head.program.document.train
        crossing = len(values) - (len(head.outputs) - head.wire)
        labels, others = (_targets(job, generator) for _ in range(2))
        try:
            gradients = _gradients(job, tail, values, labels)[:crossing]
            moved = _gradients(job, tail, values, others)[:crossing]
            weightless = _gradients(job, with_other_weights(tail), values, labels)[:crossing]
        except (RuntimeError, ValueError, IndexError, SplitEasyError):
            return None
    if not _alike(gradients, moved) and _alike(gradients, weightless):
        return (
            "labels cross the second cut in disguise: the gradients that go back to the body are the same "
            "whatever the tail's weights are, so that a worker computes every label from them"
        )
    classes = classes_of(job)
    if classes is not None and _elements_tell(gradients, labels[0], classes):
        return (
            "labels cross the second cut in disguise: for each class one element of the gradients that go "
            "back to the body lies apart for the samples of that class"
        )
    return None


def _with_values(tail: Segment, generator: torch.Generator) -> Segment:
    """The tail, with made-up numbers where a device draws its weights."""
    drawn = {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype) * 0.3
        for name, tensor in tail.tensors().items()
        if tensor.is_meta
    }
    return tail.spawn(drawn)


def _made_up(spec: ValueSpec, generator: torch.Generator, length: int) -> Value:
    if spec.is_int:
        return spec.value_for(SAMPLES, length)
    shape = spec.shape_for(SAMPLES, length)
    if spec.torch_dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.torch_dtype)
    return torch.zeros(shape, dtype=spec.torch_dtype)


def _targets(job: Job, generator: torch.Generator) -> tuple[Tensor, ...]:
    made = []
    for spec in job.signature.targets:
        shape, dtype = (SAMPLES, *spec.shape), getattr(torch, spec.dtype)
        if dtype.is_floating_point:
            made.append(torch.rand(shape, generator=generator).to(dtype))
            continue
        outputs = job.signature.outputs[0].shape
        classes = outputs[0] if job.spec.loss.name in CLASS_LOSSES and outputs else 2
        made.append(torch.randint(classes, shape, generator=generator).to(dtype))
    return tuple(made)


def _gradients(
    job: Job, tail: Segment, values: Sequence[Value], targets: tuple[Tensor, ...]
) -> list[Tensor | None]:
    leaves = [
        v.clone().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values
    ]
    seed_all(_SEED)
    backward_from(job.loss(tensors_of(tail.spawn()(*leaves)), targets))
    return [v.grad if isinstance(v, Tensor) else None for v in leaves]


def _alike(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> bool:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return bool(pairs) and all(float((a - b).norm()) <= _SAME * float(a.norm()) + 1e-12 for a, b in pairs)


def _elements_tell(gradients: Sequence[Tensor | None], labels: Tensor, classes: int) -> bool:
    """Return whether every class has an element that is larger, or smaller, for its samples than for all
    others."""
    rows = torch.cat([g.reshape(len(labels), -1) for g in gradients if g is not None], 1)
    if not classes <= rows.shape[1] <= 2 * classes:
        return False
    return all(
        bool(((rows[own].amax(0) < rows[~own].amin(0)) | (rows[own].amin(0) > rows[~own].amax(0))).any())
        for own in (labels == each for each in torch.unique(labels))
    )
