"""Refuse a model whose next step is not this one: what a trace would freeze, or leave out.

A trace holds operators of torch. It keeps what Python or numpy drew, and what a counter was, for ever, and
it leaves out hooks on gradients and backward passes that are code of the user's own. So the model is called
by plain PyTorch, watched, and called again with what is not torch's moved on.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from spliteasy.errors import JobError
from spliteasy.runtime.generators import seed_all, states_kept
from spliteasy.splitting.proof.closeness import all_close
from spliteasy.splitting.proof.model_state import ModelState, left_as_it_was
from spliteasy.splitting.proof.plain_modes import fused_attention
from spliteasy.splitting.proof.trial import Trial, refuse_failure, tensors_of, trials
from spliteasy.splitting.proof.watchers import Seen, standing_hooks, watched

_LATER = (1, 10, 1_000, 1_000_000)
"""A counter is looked at again after these numbers of calls."""

_DRAW_BY_TORCH = (
    "draw with torch, as in torch.rand(()), and multiply by the number instead of branching on it; "
    "a trace keeps for ever what anything else gave once"
)
_KEEP_IN_BUFFER = (
    "keep it in a buffer (register_buffer) and compute with it as a tensor; a trace keeps a Python number"
    " as it is, for ever"
)
_USE_DETACH = (
    "write the backward pass as part of the forward: soft + (hard - soft).detach() has the value of hard and"
    " the gradient of soft"
)
_SCALE_IN_FORWARD = (
    "change the gradient in the forward instead: x * s + (x - x * s).detach() scales it by s, and a mask that"
    " multiplies a weight masks the weight's gradient as well"
)


def refuse_unsteady(model: nn.Module, inputs: tuple[Tensor, ...], *, training: bool, what: str) -> None:
    """Raises `JobError` for what no trace can keep, by the name of the layer. The model is left as it was.

    `what` is traced, for the error: "model" or "loss". Modules are called in the modes that they have.
    """
    with states_kept(), left_as_it_was(model) as state, warnings.catch_warnings(), fused_attention(False):
        warnings.simplefilter("ignore")
        _Check(model, state, trials(inputs)[0], training, what).run()


class _Check:
    def __init__(self, model: nn.Module, state: ModelState, trial: Trial, training: bool, what: str) -> None:
        self._model, self._state, self._trial = model, state, trial
        self._training, self._what = training, what

    def run(self) -> None:
        if self._training:
            for where, kind in standing_hooks(self._model):
                raise JobError(
                    f"{where or f'the {self._what}'} has {kind}, which a trace can't keep",
                    hint=_SCALE_IN_FORWARD,
                )
        first, seen = self._call(1)
        self._refuse_seen(seen)
        counters = self._state.counters()
        names = [(counter.path, counter.name) for counter in counters]
        self._state.restore_tensors()
        again, _ = self._call(2)
        if not all_close(first, again):
            self._refuse_other_outputs(names)
        for calls in _LATER if counters else ():
            self._state.restore()
            for counter in counters:
                counter.put(_counted(counter.before, counter.now, calls))
            later, _ = self._call(1)
            if not all_close(first, later):
                self._refuse_counters(names)

    def _call(self, seed: int, *, outputs: bool = False) -> tuple[list[Tensor], Seen]:
        """The outputs of a forward, and what it did. `seed` is for Python and numpy; torch has one seed."""
        seed_all(seed)
        torch.default_generator.manual_seed(self._trial.seed)
        _, inputs = self._trial.leaves()
        try:
            with watched(self._model, outputs=outputs) as seen, torch.set_grad_enabled(self._training):
                made = tensors_of(self._model(*inputs))
        except Exception as error:
            refuse_failure(error, self._trial, self._training, self._what)
        return [tensor.detach().clone() for tensor in made], seen

    def _refuse_seen(self, seen: Seen) -> None:
        for path, source in seen.draws.items():
            raise JobError(f"{self._layer(path)} draws from {source} in its forward", hint=_DRAW_BY_TORCH)
        if not self._training:
            return
        for path, name in seen.functions:
            raise JobError(
                f"{self._layer(path)} uses {name}, a torch.autograd.Function whose backward pass is code,"
                " which a trace can't keep",
                hint=_USE_DETACH,
            )
        for path in seen.hooks:
            raise JobError(
                f"{self._layer(path)} hangs a hook on a tensor in its forward, which a trace can't keep",
                hint=_SCALE_IN_FORWARD,
            )

    def _refuse_other_outputs(self, counters: Sequence[tuple[str, str]]) -> NoReturn:
        """Name who gave something else in the second call with the same inputs and torch seed."""
        if counters:
            self._refuse_counters(counters)
        changed = self._state.changed()
        self._state.restore()
        _, first = self._call(1, outputs=True)
        self._state.restore_tensors()
        _, second = self._call(2, outputs=True)
        path = next(
            (
                path
                for (path, ours), (_, theirs) in zip(first.outputs, second.outputs, strict=False)
                if not all_close(ours, theirs)
            ),
            "",
        )
        kept = [name for where, name in changed if where == path]
        raise JobError(
            f"{self._layer(path)} gives something else when it is called again with the same inputs and seed",
            hint=f"it keeps `{kept[0]}` from one call to the next: {_KEEP_IN_BUFFER}"
            if kept
            else f"it draws from a generator other than torch's default, or reads a clock: {_DRAW_BY_TORCH}",
        )

    def _refuse_counters(self, counters: Sequence[tuple[str, str]]) -> NoReturn:
        (path, name), *others = counters
        more = "".join(f", {f'{where}.' if where else ''}{other}" for where, other in others[:3])
        raise JobError(
            f"{self._layer(path)} changes its attribute `{name}`{more} in its forward, and what the"
            f" {self._what} gives depends on it",
            hint=_KEEP_IN_BUFFER,
        )

    def _layer(self, path: str) -> str:
        return f"layer `{path}`" if path else f"the {self._what}"


def _counted(before: float, now: float, calls: int) -> float:
    """Return the value of a counter after `calls` more calls."""
    return now if isinstance(before, bool) or isinstance(now, bool) else now + (now - before) * calls
