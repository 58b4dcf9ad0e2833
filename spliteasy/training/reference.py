"""The training that split training has to equal: the whole model, in one process, by plain PyTorch.

`PlainTraining` uses the user's own model, as its factory makes it, and what a PyTorch user would write
around it. Where layers draw random numbers it draws those that the segments draw (`masks`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_leaves

from spliteasy.job import Job
from spliteasy.job.micro_batches import micro_sizes, split_batch
from spliteasy.job.spec import DpSpec
from spliteasy.privacy.ends import Drawn
from spliteasy.runtime.generators import states_kept
from spliteasy.runtime.randomness import Key
from spliteasy.splitting.proof.model_state import left_as_it_was
from spliteasy.training import schedule
from spliteasy.training.cut_calls import CutCalls
from spliteasy.training.losses import LossFunction, UsersLoss
from spliteasy.training.masks import drawn
from spliteasy.training.measures import Measure
from spliteasy.training.optim import build_optimizer, fresh_state
from spliteasy.training.plain_transforms import PlainTransforms
from spliteasy.training.private_trainer import (
    add_clipped,
    add_noise,
    for_the_body,
    from_the_device,
    noise_key,
)
from spliteasy.training.segment_trainer import (
    ACCUMULATED_PREFIX,
    AVERAGE_PREFIX,
    MODEL_PREFIX,
    OPTIMIZER_PREFIX,
    generator_state,
)

Part = tuple[tuple[Tensor, ...], tuple[Tensor, ...], float]
"""Inputs and targets of a micro-batch, and what its loss counts for."""
State = dict[str, Tensor]
"""`model/<name>` and `optimizer/<name>/<key>`, under the original model's names."""


@torch.no_grad()
def begin_with(model: nn.Module, ends: Drawn, loss: LossFunction | None = None) -> None:
    """Put a device's initial tensors into the whole model, and into the loss's own parameters."""
    own = loss.named_parameters() if isinstance(loss, UsersLoss) else []
    named: dict[str, Tensor] = dict((*model.named_parameters(), *model.named_buffers(), *own))
    for table in ends.values():
        for name, tensor in table.items():
            named[name].copy_(tensor)


class PlainTraining:
    """The user's model, one optimizer over all of it, autograd from the loss to the inputs."""

    def __init__(
        self,
        job: Job,
        model: nn.Module,
        loss: LossFunction,
        *,
        device: str,
        key: Key,
        ends: Drawn,
        noise_multiplier: float | None = None,
    ) -> None:
        """`model` as its factory left it, training mode of each submodule included.

        It trains as a split one on `device` does, whose key for the job and initial weights these are.
        `noise_multiplier`: of DP-SGD, where the job asks for it.
        """
        begin_with(model, ends, loss)
        self._job = job
        self._model = model
        self._taken = 0
        self.held: dict[str, Tensor] = {}
        """Gradients of the last step that were not applied, by weight."""
        self._ahead = 0
        """Steps by which the schedule is ahead of `_taken`, since others took them."""
        segments = [("head", job.head), ("body", job.body), ("tail", job.tail)]
        present = [(role, segment) for role, segment in segments if segment is not None]
        random = any(segment.has_random for _, segment in present)
        self._cuts = CutCalls(model, job.spec.model.cuts)
        self._random = random
        self._defences = PlainTransforms.of(job, key)
        keys = {"head": key, "tail": key}
        self._states = [
            partial(generator_state, job.spec, device, role, key=keys.get(role)) for role, _ in present
        ]
        self._loss = loss
        self._key, self._dp, self._sigma = key, job.spec.privacy.dp, noise_multiplier
        self._roles = [role for role, _ in present]
        self._clip = job.spec.clip
        self._micro_batches, self._window = job.spec.micro_batches, job.spec.accumulate
        self._decay = job.spec.optimizer.ema
        self._average: dict[str, Tensor] = {}
        self._optimizer_spec = job.spec.optimizer
        own = loss.named_parameters() if isinstance(loss, UsersLoss) else []
        self._named = dict((*model.named_parameters(), *own))
        self._measure = job.measure
        self._optimizer = build_optimizer(job.spec.optimizer, self._named.items())
        self._scheduler = (
            LambdaLR(
                self._optimizer, lambda taken: schedule.factor(job.spec.schedule, taken + self._ahead + 1)
            )
            if self._optimizer is not None
            else None
        )
        self._segments = [
            [self._named[name] for name, _ in segment.named_parameters() if name in self._named]
            for _, segment in present
        ]

    def step(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        *,
        empty: bool = False,
        hold: Collection[str] = (),
    ) -> float:
        """Train on one batch, one micro-batch after the other, and let the optimizer step after as many
        batches as the job adds up; returns the batch's loss.

        `empty`: the batch's one sample counts for nothing, since DP-SGD drew none. `hold`: weights that the
        optimizer leaves alone; `held` has their gradients then.
        """
        if self._dp is not None:
            return self._private_step(inputs, targets, self._dp, empty=empty)
        return self._step(_micro_batches(inputs, targets, self._micro_batches, self._measure), hold)

    def step_on_samples(self, samples: Sequence[Sequence[Tensor]]) -> float:
        """Train on samples that have a length of their own: each is its inputs, then its targets, and each
        micro-batch is padded to its longest."""
        inputs, targets = [], []
        taken = 0
        for size in micro_sizes(len(samples), self._micro_batches):
            columns = _padded(self._job, samples[taken : taken + size])
            taken += size
            inputs.append(columns[: len(self._job.signature.inputs)])
            targets.append(columns[len(self._job.signature.inputs) :])
        return self._step(list(zip(inputs, targets, self._measure.shares(targets), strict=True)))

    def _step(self, parts: Sequence[Part], hold: Collection[str] = ()) -> float:
        self._begin(parts[0][0])
        total = 0.0
        for micro, (part, wanted, share) in enumerate(parts):
            with self._drawn(micro), self._defended(part, wanted, share / self._window):
                outputs = tuple(leaf for leaf in tree_leaves(self._model(*part)) if isinstance(leaf, Tensor))
                loss = self._loss(outputs, wanted)
                if share:  # else no element has a label, and the loss is no number
                    scaled = loss if share == 1 else loss * share
                    (scaled if self._window == 1 else scaled / self._window).backward()  # type: ignore[no-untyped-call]
                    total += float(loss.detach()) * share
        if self._taken % self._window:
            return total
        self.held = {}
        for name in hold:
            if (gradient := self._named[name].grad) is not None:
                self.held[name], self._named[name].grad = gradient, None
        if self._clip is not None:
            for parameters in self._segments:
                nn.utils.clip_grad_norm_(parameters, self._clip.max_norm, foreach=False)
        self._apply()
        return total

    def _private_step(
        self, inputs: Sequence[Tensor], targets: Sequence[Tensor], dp: DpSpec, *, empty: bool
    ) -> float:
        """DP-SGD: each sample by itself, clipped by segment, and noise on the sums."""
        assert self._sigma is not None
        self._begin(tuple(x[:1] for x in inputs))
        segments = [[p for p in segment if p.requires_grad] for segment in self._segments]
        losses = [
            self._private_sample(row, tuple(x[row : row + 1] for x in inputs), targets, segments, dp)
            for row in range(0 if empty else inputs[0].shape[0])
        ]
        losses = losses or [0.0]
        by_role = dict(zip(self._roles, segments, strict=True))
        summed = by_role | {"body": by_role["tail"]}
        keys = [noise_key(self._key, role, self._taken, summed[role], losses) for role in by_role]
        for role, key in zip(by_role, keys, strict=True):
            own = from_the_device(for_the_body(key, self._sigma)) if role == "body" else key
            add_noise(by_role[role], dp, self._sigma, own)
        self._apply()
        return sum(losses) / len(losses)

    def _private_sample(
        self,
        row: int,
        inputs: tuple[Tensor, ...],
        targets: Sequence[Tensor],
        segments: Sequence[Sequence[Tensor]],
        dp: DpSpec,
    ) -> float:
        """Add a sample's clipped gradients to what the weights have; returns its loss."""
        wanted = tuple(target[row : row + 1] for target in targets)
        if not self._measure.elements(wanted):
            return 0.0
        with self._drawn(row):
            outputs = tuple(leaf for leaf in tree_leaves(self._model(*inputs)) if isinstance(leaf, Tensor))
            loss = self._loss(outputs, wanted)
            flat = [p for segment in segments for p in segment]
            made = iter(torch.autograd.grad(loss, flat, allow_unused=True))
        for segment in segments:
            add_clipped(segment, tuple(next(made) for _ in segment), dp)
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the model's outputs in evaluation mode, by the averages of the weights where there are some.

        Nothing of the training changes.
        """
        modes = {module: module.training for module in self._model.modules()}
        weights = {name: self._named[name].detach().clone() for name in self._average}
        try:
            self._model.eval()
            for name, average in self._average.items():
                self._named[name].copy_(average)
            made = self._model(*inputs)
        finally:
            for module, mode in modes.items():
                module.training = mode
            for name, weight in weights.items():
                self._named[name].copy_(weight)
        return tuple(leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor))

    def _begin(self, inputs: tuple[Tensor, ...]) -> None:
        if not self._taken:
            with states_kept(), left_as_it_was(self._model):
                self._cuts.count_calls(inputs)
        self._taken += 1

    def _apply(self) -> None:
        if self._optimizer is not None and self._scheduler is not None:
            self._optimizer.step()
            self._scheduler.step()
            self._optimizer.zero_grad()
            if self._decay is not None:
                self._average_weights(self._decay)

    @torch.no_grad()
    def _average_weights(self, decay: float) -> None:
        for name, parameter in self._named.items():
            if parameter.requires_grad and name in self._average:
                self._average[name].lerp_(parameter, 1 - decay)
            elif parameter.requires_grad:
                self._average[name] = parameter.detach().clone()

    def _drawn(self, micro: int) -> AbstractContextManager[None]:
        """The random numbers of the step's micro-batch."""
        if not self._random:
            return nullcontext()
        return drawn(self._cuts, [state(self._taken, micro) for state in self._states])

    def _defended(
        self, inputs: Sequence[Tensor], targets: Sequence[Tensor], share: float
    ) -> AbstractContextManager[None]:
        """Change values at the cuts as the device does, while it is entered."""
        if self._defences is None:
            return nullcontext()
        return self._cuts.at_cuts(self._defences.at(self._taken, inputs, targets, share))

    def apply_given(self, gradients: State, buffers: State) -> None:
        """Take one step of the optimizer with these gradients, and take over these buffers."""
        own = self.state()
        with torch.no_grad():
            for name, buffer in buffers.items():
                own[name].copy_(buffer)
        for name, gradient in gradients.items():
            self._named[name].grad = gradient.clone()
        if self._clip is not None:
            for parameters in self._segments:
                nn.utils.clip_grad_norm_(parameters, self._clip.max_norm, foreach=False)
        self._taken += 1
        self._apply()

    def schedule_from(self, steps: int) -> None:
        """Let the schedule of the learning rate go on as if so many steps had been taken."""
        self._ahead = steps - self._taken
        if self._scheduler is not None and self._optimizer is not None:
            rates = zip(self._optimizer.param_groups, self._scheduler.base_lrs, strict=True)
            for group, rate in rates:
                group["lr"] = rate * self._scheduler.lr_lambdas[0](self._taken)

    def state(self) -> State:
        """Weights, buffers, optimizer state, averages and sums of gradients after the last step: live
        tensors, not copies."""
        state = {MODEL_PREFIX + name: tensor.detach() for name, tensor in self._model.state_dict().items()}
        state |= {MODEL_PREFIX + name: tensor.detach() for name, tensor in self._named.items()}
        if self._optimizer is not None:
            for name, parameter in self._named.items():
                for key, value in self._optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        state[f"{OPTIMIZER_PREFIX}{name}/{key}"] = value
        state |= {AVERAGE_PREFIX + name: average for name, average in self._average.items()}
        for name, parameter in self._named.items():
            if self._taken % self._window and parameter.grad is not None:
                state[ACCUMULATED_PREFIX + name] = parameter.grad
        return state

    def fixed_names(self) -> frozenset[str]:
        """Return the weights that training does not change, under the original model's names."""
        return frozenset(name for name, parameter in self._named.items() if not parameter.requires_grad)

    @torch.no_grad()
    def take_over(self, state: State, *, instead_of: State) -> None:
        """Go on from `state` in place of the entries `instead_of` of the own one; steps count on."""
        own = self.state()
        for name in instead_of:
            if name.startswith(MODEL_PREFIX):
                own[name].copy_(state[name])
        if self._optimizer is None:
            return
        for name, parameter in self._named.items():
            prefix = f"{OPTIMIZER_PREFIX}{name}/"
            if MODEL_PREFIX + name in instead_of:
                kept = {key[len(prefix) :]: x.clone() for key, x in state.items() if key.startswith(prefix)}
                kept = kept or fresh_state(self._optimizer_spec, parameter)
                self._optimizer.state.pop(parameter, None)
                if kept:
                    self._optimizer.state[parameter].update(kept)


def _padded(job: Job, samples: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Inputs and targets of several samples, as `pad_sequence` makes them; a length of 1 becomes 2."""
    made, pad = [], job.spec.model.pad
    specs = (*job.signature.inputs, *job.signature.targets)
    for column, spec in zip(zip(*samples, strict=True), specs, strict=True):
        if not spec.length_dims:
            made.append(torch.stack(column))
            continue
        value = pad[spec.name]
        whole = pad_sequence(list(column), batch_first=True, padding_value=value)
        if whole.shape[1] == 1:
            whole = torch.cat((whole, torch.full_like(whole, value)), dim=1)
        made.append(whole)
    return tuple(made)


def _micro_batches(
    inputs: Sequence[Tensor], targets: Sequence[Tensor], count: int, measure: Measure
) -> list[Part]:
    """Inputs and targets of each micro-batch, and what its loss counts for."""
    parts, wanted = split_batch(inputs, count), split_batch(targets, count)
    return list(zip(parts, wanted, measure.shares(wanted), strict=True))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest absolute difference; infinity where shape, dtype or a NaN's place differ.

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
