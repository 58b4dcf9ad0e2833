"""Decoders from auxiliary data learn the way back from activations to inputs, on the adversary's pairs.

The adversary runs data of the same kind through the head that it knows (the job package's, or the
released one), learns the reverse, and applies it to what the device sent: in the first epoch, or in the
newest one with a released head.

Source: He et al. (ACSAC 2019, the inverse network); Pasquini et al. (CCS 2021) for auxiliary data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spliteasy.privacy.attacks.base import (
    WIRE,
    believed_head,
    crossing,
    exchanges,
    first_tensor,
    no_auxiliary,
)
from spliteasy.privacy.guesses import InputGuess
from spliteasy.privacy.record import Adversary, Tensors, View, rows_of
from spliteasy.privacy.statistics import put_in_order, ridge
from spliteasy.runtime.randomness import drawing, state_of

ROUNDS = 200
RATE = 3e-3
BATCH = 64
SHOWN = 64
"""Samples that are reconstructed, from the first of the epoch."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """The examples to learn from, and the values to apply the result to."""

    inputs: Tensor
    """The first input of public samples."""
    rows: Tensor
    """Their activations, a row for each."""
    shaped: Tensor
    """The first of their activations, in its own shape."""
    steps: range
    """The device's steps that are attacked: its first epoch, or with a released head its newest."""


def pairs(view: View) -> Pairs:
    """Public data run through the head that the adversary knows, in training mode."""
    assert view.auxiliary is not None
    inputs: Tensors = view.auxiliary[0]
    head = believed_head(view).requires_grad_(False)
    batch = view.steps[0][0].samples
    rows, shaped = [], []
    # In batches as large as the device's: batch norm looks at the whole of one.
    for start in range(0, max(1, len(inputs[0]) - batch + 1), batch):
        part = tuple(x[start : start + batch] for x in inputs)
        values = crossing(head, part)
        rows.append(rows_of(values, len(part[0])))
        shaped.append(first_tensor(values).detach())
    seen = sum(len(r) for r in rows)
    steps = view.last_epoch if view.released is not None else view.first_epoch
    return Pairs(inputs[0][:seen], torch.cat(rows), torch.cat(shaped), steps)


def seen_rows(view: View, learned: Pairs) -> Tensor:
    """Return what the device sent, a row for each sample, with shuffled tokens put into order again."""
    if not view.job.spec.privacy.shuffle_tokens:
        return view.activations(learned.steps)
    sent = torch.cat([first_tensor(each.activations) for each in exchanges(view, learned.steps)])
    return put_in_order(learned.shaped, sent).flatten(1)


class LinearDecoder:
    """Ridge regression from activations to inputs."""

    name = "linear-decoder"
    adversaries = WIRE | {Adversary.HOLDER}
    source = "He et al. (ACSAC 2019); Pasquini et al. (CCS 2021)"

    def refuses(self, view: View) -> str | None:
        return no_auxiliary(view)

    def run(self, view: View) -> InputGuess:
        learned = pairs(view)
        seen = seen_rows(view, learned)[:SHOWN]
        found = ridge(learned.rows, learned.inputs.flatten(1), seen)
        return InputGuess(inputs=found.reshape(len(seen), *learned.inputs.shape[1:]), steps=learned.steps)


class ConvolutionalDecoder:
    """A small network from activations to inputs: convolutions where both are images, else two layers."""

    name = "convolutional-decoder"
    adversaries = WIRE | {Adversary.HOLDER}
    source = "He et al. (ACSAC 2019), inverse network"

    def refuses(self, view: View) -> str | None:
        return no_auxiliary(view)

    def run(self, view: View) -> InputGuess:
        learned = pairs(view)
        steps = learned.steps
        if learned.shaped.dim() == 4 and learned.inputs.dim() == 4:
            features = learned.shaped
            seen = torch.cat([first_tensor(e.activations) for e in exchanges(view, steps)])
        else:
            features, seen = learned.rows, seen_rows(view, learned)
        decoder = trained_decoder(features, learned.inputs)
        with torch.no_grad():
            return InputGuess(inputs=decoder(seen[:SHOWN]), steps=steps)


class Decoder(nn.Module):
    """A network from the tensors of a cut to inputs of `shape`."""

    def __init__(self, features: Tensor, shape: tuple[int, ...], width: int = 32) -> None:
        super().__init__()
        self.shape = shape
        scale = features.std() + 1e-6
        self.scale = float(scale)
        if features.dim() == 4:
            self.body: nn.Module = nn.Sequential(
                nn.Conv2d(features.shape[1], width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
            )
            self.out: nn.Module = nn.Conv2d(width, shape[0], 3, padding=1)
        else:
            self.body = nn.Sequential(nn.Linear(features.shape[1], 4 * width), nn.ReLU())
            self.out = nn.Linear(4 * width, int(torch.tensor(shape).prod()))

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.body(features / self.scale)
        if hidden.dim() == 4:
            hidden = F.interpolate(hidden, size=self.shape[1:], mode="nearest")
        found: Tensor = self.out(hidden)
        return found.reshape(len(features), *self.shape)


def trained_decoder(features: Tensor, inputs: Tensor) -> Decoder:
    """A decoder that learned these pairs."""
    with drawing(state_of(0)):
        decoder = Decoder(features, tuple(inputs.shape[1:]))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=RATE)
    for _ in range(ROUNDS):
        chosen = torch.randint(len(features), (min(BATCH, len(features)),), generator=generator)
        loss = F.mse_loss(decoder(features[chosen]), inputs[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return decoder.eval()
