"""FSHA: a worker that trains the device's head for its own purpose (feature-space hijacking).

The worker has an encoder of its own (as the head is built) and a decoder, trained on public data to give
inputs back. It answers the device's activations with gradients that pull their distribution towards its own
encoder's, by a discriminator. Once both agree, its decoder reads the device's activations.

Source: Pasquini, Ateniese, Bernaschi, "Unleashing the tiger" (CCS 2021, arXiv 2012.02670).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spliteasy.privacy.attacks.base import crossing, exchanges, first_tensor, no_auxiliary
from spliteasy.privacy.attacks.decoders import Decoder
from spliteasy.privacy.attacks.unsplit import made_up_head
from spliteasy.privacy.guesses import InputGuess
from spliteasy.privacy.record import Adversary, View
from spliteasy.runtime.randomness import drawing, state_of
from spliteasy.training.segment_trainer import Gradients, Values

BATCH = 64
PRACTICE = 200
"""Rounds of encoder and decoder on public data, before the device comes."""

ROUNDS = 5
"""The discriminator's steps for each step of the device."""

RATE = 2e-3
PULL = 0.3
"""The length of the made-up gradients beside the honest ones: a strong pull runs past its aim."""

SHOWN = 64


class Hijack:
    """The worker's mind: encoder, decoder, discriminator."""

    def __init__(self, view: View) -> None:
        assert view.auxiliary is not None
        self._public = view.auxiliary[0]
        self._generator = torch.Generator().manual_seed(0)
        self._encoder = made_up_head(view.job.head)
        sample = self._encode(BATCH).detach()
        with drawing(state_of(0)):
            self._decoder = Decoder(sample, tuple(self._public[0].shape[1:]))
            self._critic = _critic(sample)
        self._judge = torch.optim.Adam(self._critic.parameters(), lr=RATE, betas=(0.5, 0.9))
        self._practise()
        self._encoder.requires_grad_(False)

    def gradients(self, activations: Values, honest: Gradients) -> Gradients:
        private = first_tensor(activations)
        for _ in range(ROUNDS):
            own = self._encode(len(private)).detach()
            verdicts = self._critic(own), self._critic(private)
            loss = (verdicts[0] - 1).pow(2).mean() + verdicts[1].pow(2).mean()
            self._judge.zero_grad()
            torch.autograd.backward(loss)
            self._judge.step()
        leaf = private.clone().requires_grad_()
        (wanted,) = torch.autograd.grad((self._critic(leaf) - 1).pow(2).mean(), leaf)
        before = next((g for g in honest if g is not None), None)
        length = float(before.norm()) if before is not None else 1.0
        made = wanted * (PULL * max(length, 1e-3) / wanted.norm().clamp_min(1e-12))
        answers: list[Tensor | None] = [None if g is None else torch.zeros_like(g) for g in honest]
        place = next(i for i, v in enumerate(activations) if isinstance(v, Tensor))
        if answers[place] is not None:
            answers[place] = made.contiguous()
        return tuple(answers)

    @torch.no_grad()
    def reconstruct(self, activations: Values) -> Tensor:
        found: Tensor = self._decoder(first_tensor(activations))
        return found

    def _encode(self, samples: int) -> Tensor:
        """Activations of public samples, as the hijacker's own encoder gives them."""
        chosen = torch.randint(len(self._public[0]), (samples,), generator=self._generator)
        return first_tensor(crossing(self._encoder, tuple(x[chosen] for x in self._public)))

    def _practise(self) -> None:
        learned = [*self._encoder.parameters(), *self._decoder.parameters()]
        optimizer = torch.optim.Adam([p for p in learned if p.requires_grad], lr=RATE)
        for _ in range(PRACTICE):
            chosen = torch.randint(len(self._public[0]), (BATCH,), generator=self._generator)
            inputs = tuple(x[chosen] for x in self._public)
            found = self._decoder(first_tensor(crossing(self._encoder, inputs)))
            loss = F.mse_loss(found, inputs[0])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()


def _critic(sample: Tensor, width: int = 32) -> nn.Module:
    """Tells the hijacker's activations (1) from the device's (0)."""
    if sample.dim() == 4:
        return nn.Sequential(
            nn.Conv2d(sample.shape[1], width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.LazyLinear(1),
        )
    flat = sample.flatten(1).shape[1]
    return nn.Sequential(nn.Flatten(), nn.Linear(flat, 2 * width), nn.LeakyReLU(0.2), nn.Linear(2 * width, 1))


class Fsha:
    name = "fsha"
    adversaries = frozenset({Adversary.ACTIVE})
    source = "Pasquini et al. (CCS 2021)"

    def refuses(self, view: View) -> str | None:
        return no_auxiliary(view)

    def hijacker(self, view: View) -> Hijack:
        """The mind that answers in the worker's place; `view` has no steps yet."""
        return Hijack(view)

    def run(self, view: View) -> InputGuess:
        assert view.hijacker is not None
        steps = view.last_epoch
        found = [view.hijacker.reconstruct(e.activations) for e in exchanges(view, steps)]
        return InputGuess(inputs=torch.cat(found)[:SHOWN], steps=steps)
