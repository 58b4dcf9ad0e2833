"""Tail tracking: follow the device's tail from its first weights, and read the labels off its gradients.

The adversary runs its copy of the tail on b, and computes what gb would be for each class. The class whose
gradient is nearest is the label. With all labels it takes the same optimizer step as the device, and has the
tail of the next step. Where the first weights are known, training is deterministic and the copy stays
equal bit for bit; where they are not, it has drawn a tail of its own and guesses.

Source: this project's own trial; the idea of replaying a known output layer is in UnSplit (Erdoğan et al.,
WPES 2022, arXiv 2108.09033).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spliteasy.privacy.attacks.base import WIRE, no_classes
from spliteasy.privacy.guesses import LabelGuess
from spliteasy.privacy.record import Exchange, View, rows_of
from spliteasy.training.segment_trainer import SegmentTrainer, backward_from, tensors_of

MAX_CLASSES = 256
"""One backward pass a class and step."""


class TailTracking:
    name = "tail-tracking"
    adversaries = WIRE
    source = "own trial; UnSplit (arXiv 2108.09033) for the known output layer"

    def refuses(self, view: View) -> str | None:
        if (view.classes or 0) > MAX_CLASSES:
            return f"more than {MAX_CLASSES} classes"
        return no_classes(view) or ("the tail needs values that never cross" if view.silent_tail else None)

    def run(self, view: View) -> LabelGuess:
        assert view.classes is not None
        labels, _ = follow(view)
        return LabelGuess(labels=labels, steps=range(len(view.steps)), classes=view.classes)


def follow(view: View) -> tuple[Tensor, SegmentTrainer]:
    """The label of every sample, int64 [samples of all steps], and the tail after the last step."""
    tail = view.job.tail
    assert tail is not None
    assert view.classes is not None
    spy = SegmentTrainer(tail.spawn(), view.job.spec, device=view.device, role="tail")
    found: list[Tensor] = []
    for step in view.steps:
        for micro, exchange in enumerate(step):
            labels = _labels(view, spy, exchange, micro)
            found.append(labels)
            opened = spy.forward(exchange.outputs, micro=micro)
            loss = view.job.loss(tensors_of(opened.outputs), (labels,))
            backward_from(loss, exchange.share, view.job.spec.accumulate)
        if spy.finite():
            spy.apply()
        else:
            spy.skip()
    return torch.cat(found), spy


def _labels(view: View, spy: SegmentTrainer, exchange: Exchange, micro: int) -> Tensor:
    """The class of each sample whose gradient comes nearest to the one that was sent."""
    assert view.classes is not None
    sent = rows_of(exchange.output_gradients, exchange.samples)
    errors = []
    for label in range(view.classes):
        copy = SegmentTrainer(spy.segment.spawn(), view.job.spec, device=view.device, role="tail")
        copy.step = spy.step
        opened = copy.forward(exchange.outputs, micro=micro)
        wanted = torch.full((exchange.samples,), label)
        loss = view.job.loss(tensors_of(opened.outputs), (wanted,))
        backward_from(loss, exchange.share, view.job.spec.accumulate)
        made = rows_of([v.grad for v in opened.inputs if isinstance(v, Tensor)], exchange.samples)
        errors.append((made - sent).pow(2).sum(1))
    return torch.stack(errors).argmin(0)
