"""The training that split training has to equal: the whole model, in one process, by plain PyTorch.

`PlainTraining` uses the user's own model and what a PyTorch user would write around it. A model that
draws random numbers draws them per segment when it is split, so that its reference (`SegmentedTraining`)
runs the job's segments one after the other in one process, under the same seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_leaves

from spliteasy import schedule
from spliteasy.job import Job
from spliteasy.losses import LossFunction, UsersLoss
from spliteasy.micro_batches import share_of, split_batch
from spliteasy.optim import build_optimizer
from spliteasy.training import (
    MODEL_PREFIX,
    OPTIMIZER_PREFIX,
    STEP_KEY,
    SegmentTrainer,
    Values,
    backward_from,
    tensors_of,
)

State = dict[str, Tensor]
"""`model/<name>` and `optimizer/<name>/<key>`, under the original model's names."""


class Reference(Protocol):
    """A training in one process."""

    def step(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
        """Take one optimizer step on a batch, one micro-batch after the other; returns the batch's loss."""
        ...

    def state(self) -> State: ...


def reference_of(job: Job, model: nn.Module, loss: LossFunction, *, device: str) -> Reference:
    """The training that a split one on `device` has to equal; `model` as its factory made it."""
    segments = [segment for segment in (job.head, job.body, job.tail) if segment is not None]
    if any(segment.has_random for segment in segments):
        return SegmentedTraining(job, device=device)
    return PlainTraining(job, model, loss)


class PlainTraining:
    """The user's model, one optimizer over all of it, autograd from the loss to the inputs."""

    def __init__(self, job: Job, model: nn.Module, loss: LossFunction) -> None:
        """`model` as its factory left it, training mode of each submodule included."""
        self._model = model
        self._loss = loss
        self._clip = job.spec.clip
        self._micro_batches = job.spec.micro_batches
        own = loss.named_parameters() if isinstance(loss, UsersLoss) else []
        self._named = dict((*model.named_parameters(), *own))
        self._optimizer = build_optimizer(job.spec.optimizer, self._named.items())
        self._scheduler = (
            LambdaLR(self._optimizer, lambda taken: schedule.factor(job.spec.schedule, taken + 1))
            if self._optimizer is not None
            else None
        )
        self._segments = [
            [self._named[name] for name, _ in segment.named_parameters() if name in self._named]
            for segment in (job.head, job.body, job.tail)
            if segment is not None
        ]

    def step(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
        total = 0.0
        for part, wanted, share in _micro_batches(inputs, targets, self._micro_batches):
            outputs = tuple(leaf for leaf in tree_leaves(self._model(*part)) if isinstance(leaf, Tensor))
            loss = self._loss(outputs, wanted)
            (loss if share == 1 else loss * share).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) * share
        if self._clip is not None:
            for parameters in self._segments:
                nn.utils.clip_grad_norm_(parameters, self._clip.max_norm, foreach=False)
        if self._optimizer is not None and self._scheduler is not None:
            self._optimizer.step()
            self._scheduler.step()
            self._optimizer.zero_grad()
        return total

    def state(self) -> State:
        state = {MODEL_PREFIX + name: tensor.detach() for name, tensor in self._model.state_dict().items()}
        state |= {MODEL_PREFIX + name: tensor.detach() for name, tensor in self._named.items()}
        if self._optimizer is not None:
            for name, parameter in self._named.items():
                for key, value in self._optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        state[f"{OPTIMIZER_PREFIX}{name}/{key}"] = value
        return state


class SegmentedTraining:
    """The job's segments, one after the other, without broker, store or envelope between them."""

    def __init__(self, job: Job, *, device: str) -> None:
        self._job = job
        parts = (("head", job.head), ("body", job.body), ("tail", job.tail))
        self._trainers = [
            SegmentTrainer(segment.spawn(), job.spec, device=device, role=role)
            for role, segment in parts
            if segment is not None
        ]

    def step(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
        parts = _micro_batches(inputs, targets, self._job.spec.micro_batches)
        loss = 0.0
        for micro, (part, wanted, share) in enumerate(parts):
            loss += self._accumulate(micro, part, wanted, share) * share
        for trainer in self._trainers:
            trainer.apply()
        return loss

    def _accumulate(self, micro: int, inputs: Values, targets: tuple[Tensor, ...], share: float) -> float:
        """Forward and backward of one micro-batch; returns its loss."""
        head, *others = self._trainers
        opened = [head.forward(inputs, micro=micro)]
        wire = head.segment.n_wire
        kept = opened[0].outputs[wire:]
        values: Values = opened[0].outputs[:wire]
        for index, trainer in enumerate(others):
            arriving = tuple(v.detach() if isinstance(v, Tensor) else v for v in values)
            is_tail = index == len(others) - 1 and self._job.tail is not None
            opened.append(trainer.forward((*arriving, *kept) if is_tail else arriving, micro=micro))
            values = opened[-1].outputs
        loss = self._job.loss(tensors_of(values), targets)
        backward_from(loss, share)
        gradients = tuple(v.grad if isinstance(v, Tensor) else None for v in opened[-1].inputs)
        kept_gradients: tuple[Tensor | None, ...] = (None,) * len(kept)
        if self._job.tail is not None:
            arrived = len(gradients) - len(kept)
            gradients, kept_gradients = gradients[:arrived], gradients[arrived:]
            gradients = others[0].backward(opened[1], gradients)
        head.backward(opened[0], (*gradients, *kept_gradients))
        return float(loss.detach())

    def state(self) -> State:
        state: State = {}
        for trainer in self._trainers:
            state.update(trainer.state())
        state.pop(STEP_KEY)
        return state


def _micro_batches(
    inputs: Sequence[Tensor], targets: Sequence[Tensor], count: int
) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...], float]]:
    """Inputs and targets of each micro-batch, and what its loss counts for."""
    batch = inputs[0].shape[0]
    parts = zip(split_batch(inputs, count), split_batch(targets, count), strict=True)
    return [(part, wanted, share_of(part[0].shape[0], batch)) for part, wanted in parts]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference; infinity where shape, dtype or a NaN's place differ.

    0.0 means the same bits, but for the sign of a zero and the payload of a NaN.
    """
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    if ours.numel() == 0 or torch.equal(ours, theirs):
        return 0.0
    if not ours.is_floating_point():
        return float((ours.to(torch.float64) - theirs.to(torch.float64)).abs().max())
    a, b = ours.to(torch.float64), theirs.to(torch.float64)
    same = (a == b) | (a.isnan() & b.isnan())
    worst = torch.where(same, torch.zeros_like(a), (a - b).abs()).max()
    return float("inf") if worst.isnan() else float(worst)
