"""Defences in a simulated world: that it would notice one which is no pure function of secret and values, and
a budget that counts less than what was released.

The sweep over many seeds trains with each of them on (`toy.VARIANTS`).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from device_agent.state_folder import StateFolder
from device_agent.training.budget import Budget
from spliteasy.privacy.defences import transforms
from spliteasy.privacy.defences.label_dp import RandomizedResponse
from spliteasy.privacy.defences.transforms import CutTransforms
from spliteasy.privacy.numbers import fill
from spliteasy.runtime.randomness import Key
from spliteasy.training.private_trainer import PrivateTrainer
from tests.simulation import toy
from tests.simulation.faults import CALM, FREQUENT, Rates
from tests.simulation.run import play
from tests.simulation.toy import NOISY, PRIVATE, Variant

NOISE = Variant(privacy=(*NOISY, ("gradient_noise", 0.3)), epochs=2)
LABELS = Variant(privacy=(("peer_labels", True), ("label_dp", 1.0)), epochs=2)
NOPEEK = Variant(privacy=(("nopeek", 2.0),), epochs=2)
CRASHES = replace(FREQUENT, agent_crash_s=1.0)
SEEDS, DEVICE = 40, "phone-1"


@contextmanager
def draw_noise_for_each_send() -> Iterator[None]:
    """The nth draw of a process is noise n, whatever it is for."""
    drawn: defaultdict[CutTransforms, Counter[str]] = defaultdict(Counter)

    def normal(self: CutTransforms, clean: Tensor, purpose: str, *_: Any, shape: Any = None) -> Tensor:
        drawn[self][purpose] += 1
        noise = torch.empty(clean.shape if shape is None else shape, dtype=clean.dtype)
        fill(noise, "normal", (0.0, 1.0), self._key.at(purpose, drawn[self][purpose]))
        return noise

    with mock.patch.object(CutTransforms, "_normal", normal), as_the_plain_program_too():
        yield


@contextmanager
def draw_private_noise_for_each_step_taken() -> Iterator[None]:
    """The same of DP-SGD's."""
    drawn: dict[int, tuple[PrivateTrainer, Counter[str]]] = {}

    def key_of(self: PrivateTrainer, key: Key, role: str, _: Sequence[float]) -> Key:
        _, numbers = drawn.setdefault(id(self), (self, Counter()))
        numbers[role] += 1
        return key.at("dp", role, numbers[role])

    with mock.patch.object(PrivateTrainer, "noise_key", key_of), as_the_plain_program_too():
        yield


@contextmanager
def draw_answers_at_each_start() -> Iterator[None]:
    """Each process has labels of its own."""
    number = itertools.count()
    begin = RandomizedResponse.__init__

    def begun(self: RandomizedResponse, epsilon: float, classes: int, key: Key) -> None:
        begin(self, epsilon, classes, key.at(next(number)))

    with mock.patch.object(RandomizedResponse, "__init__", begun):
        yield


@contextmanager
def leave_the_penalty_out_where_a_step_is_taken_again() -> Iterator[None]:
    penalty, done = transforms.penalty_gradient, set[bytes]()

    def once(strength: float, inputs: Sequence[Tensor], sent: Tensor) -> Tensor:
        mark = sent.detach().contiguous().numpy().tobytes()
        found = penalty(strength, inputs, sent) if mark not in done else torch.zeros_like(sent)
        done.add(mark)
        return found

    with mock.patch.object(transforms, "penalty_gradient", once):
        yield


@contextmanager
def count_once_it_was_sent() -> Iterator[None]:
    """A release is written down when the next one is computed."""
    count, waiting = Budget.count, dict[int, tuple[Any, ...]]()

    def late(self: Budget, *release: Any) -> None:
        before = waiting.pop(id(self), None)
        waiting[id(self)] = release
        if before is not None:
            count(self, *before)

    with mock.patch.object(Budget, "count", late):
        yield


@contextmanager
def forget_the_budget_in_a_crash() -> Iterator[None]:
    with mock.patch.object(StateFolder, "budget", None):
        yield


@contextmanager
def count_equal_values_again() -> Iterator[None]:
    """It promises nothing false, and the budget does not last to the end."""
    count, number = Budget.count, itertools.count()

    def again(self: Budget, step: int, part: Any, digest: str) -> None:
        count(self, step, part, f"{digest} {next(number)}")

    with mock.patch.object(Budget, "count", again):
        yield


@contextmanager
def as_the_plain_program_too() -> Iterator[None]:
    """The run to compare with has the same mistake, so that only what faults change is seen."""
    with mock.patch.object(toy, "undisturbed", toy.undisturbed.__wrapped__):
        yield


BROKEN: dict[Callable[[], Any], tuple[Variant, Rates]] = {
    draw_noise_for_each_send: (NOISE, FREQUENT),
    draw_private_noise_for_each_step_taken: (PRIVATE, CRASHES),
    draw_answers_at_each_start: (LABELS, FREQUENT),
    leave_the_penalty_out_where_a_step_is_taken_again: (NOPEEK, FREQUENT),
    count_once_it_was_sent: (PRIVATE, FREQUENT),
    forget_the_budget_in_a_crash: (PRIVATE, CRASHES),
    count_equal_values_again: (PRIVATE, CRASHES),
}


@pytest.mark.parametrize("mutation", BROKEN, ids=lambda mutation: mutation.__name__)
def test_a_broken_defence_is_caught(mutation: Callable[[], Any]) -> None:
    """The first seed that fails the broken build passes the whole one."""
    variant, rates = BROKEN[mutation]
    toy.undisturbed(DEVICE, variant)  # kept from now on: what is right is not for a broken build to say
    for seed in range(SEEDS):
        with mutation():
            broken = play(seed, rates=rates, variant=variant, devices=(DEVICE,))
        if broken.violations:
            assert play(seed, rates=rates, variant=variant, devices=(DEVICE,)).violations == ()
            return
    pytest.fail(f"{SEEDS} seeds did not notice")


@pytest.mark.parametrize("mutation", [draw_noise_for_each_send, draw_private_noise_for_each_step_taken])
def test_only_faults_tell_noise_of_the_nth_draw_from_noise_of_the_values(mutation: Callable[[], Any]) -> None:
    with mutation():
        assert play(0, variant=BROKEN[mutation][0], rates=CALM, devices=(DEVICE,)).violations == ()
