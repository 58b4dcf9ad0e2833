"""A segment that trains by DP-SGD: each sample by itself, its gradient clipped, noise on the sum.

Abadi et al., Deep Learning with Differential Privacy (CCS 2016), with a clip for each segment: where a sample
moves head, body and tail by max_grad_norm / √3 at most, it moves the model by max_grad_norm. Samples run
one after the other, so that no operator sees two of them, and plain PyTorch gives the same bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spliteasy.graph.segment import Segment
from spliteasy.job.spec import DpSpec, JobSpec
from spliteasy.privacy.numbers import fill
from spliteasy.runtime.randomness import KEY_BYTES, Key
from spliteasy.training.digest import strong_digest
from spliteasy.training.losses import LossFunction
from spliteasy.training.measures import Measure
from spliteasy.training.segment_trainer import Gradients, OpenForward, SegmentTrainer, Values

SEGMENTS = 3
"""Head, body and tail have equal parts of the clip's square."""


@dataclass(frozen=True, slots=True)
class OpenRows(OpenForward):
    """Inputs and outputs of the whole batch, and those of each sample, with its graph."""

    rows: tuple[OpenForward, ...]


@dataclass(frozen=True, slots=True)
class BodyNoise:
    """The source of the body's noise on a worker. The holder of the trained model never sees it."""

    key: str = field(repr=False)
    """64 hexadecimal digits."""
    multiplier: float

    @property
    def fingerprint(self) -> str:
        """Tells two apart, and nothing else."""
        return hashlib.blake2b(self.key.encode(), digest_size=16).hexdigest()


class PrivateTrainer(SegmentTrainer):
    """A `SegmentTrainer` whose step is a release of the Gaussian mechanism. See `give_noise`."""

    dp: DpSpec
    _noise: Key | None = None
    _sigma: float = 0.0

    def give_noise(self, key: Key, noise_multiplier: float) -> None:
        """The source of the open step's noise; `apply` needs it."""
        self._noise, self._sigma = key, noise_multiplier

    def _forward(self, values: Sequence[Tensor | int], step: int, micro: int) -> OpenRows:
        rows = []
        tensors = [value for value in values if isinstance(value, Tensor)]
        for row in range(tensors[0].shape[0]):
            leaves = tuple(
                tensor[row : row + 1].detach().clone().requires_grad_(spec.needs_grad)
                for tensor, spec in zip(tensors, self.segment.input_values, strict=True)
            )
            with self._drawing(step, row):
                rows.append(OpenForward(leaves, self.segment.forward(*leaves)))
        return OpenRows(tuple(tensors), _joined([row.outputs for row in rows]), tuple(rows))

    def backward(self, opened: OpenForward, gradients: Sequence[Tensor | None]) -> Gradients:
        """Add each sample's clipped gradient; returns the inputs' gradients, which are not clipped."""
        assert isinstance(opened, OpenRows)
        found = []
        for place, row in enumerate(opened.rows):
            own = [None if g is None else g[place : place + 1] for g in gradients]
            weights, inputs = sample_gradients(self._trainable, row, own)
            add_clipped(self._trainable, weights, self.dp)
            found.append(inputs)
        return tuple(
            None if column[0] is None else torch.cat([g for g in column if g is not None])
            for column in zip(*found, strict=True)
        )

    def noise_key(self, key: Key, role: str, losses: Sequence[float]) -> Key:
        """Return the source of the open step's noise, by the sums so far."""
        return noise_key(key, role, self.step + 1, self._trainable, losses)

    def apply(self) -> None:
        assert self._noise is not None, "a private step needs its noise"
        add_noise(self._trainable, self.dp, self._sigma, self._noise)
        self._noise = None
        super().apply()


def sample_gradients(
    trainable: Sequence[Tensor], row: OpenForward, gradients: Sequence[Tensor | None]
) -> tuple[Gradients, Gradients]:
    """The gradients of weights and of inputs, from one sample's gradients of its outputs."""
    pairs = [
        (output, gradient)
        for output, gradient in zip(row.outputs, gradients, strict=True)
        if gradient is not None and isinstance(output, Tensor) and output.requires_grad
    ]
    sums = [weight.grad for weight in trainable]
    for weight in trainable:
        weight.grad = None
    if pairs:
        torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
    made = tuple(weight.grad for weight in trainable)
    for weight, total in zip(trainable, sums, strict=True):
        weight.grad = total
    return made, tuple(v.grad if isinstance(v, Tensor) else None for v in row.inputs)


@torch.no_grad()
def add_clipped(trainable: Sequence[Tensor], gradients: Gradients, dp: DpSpec) -> None:
    """Add one sample's gradients of a segment, scaled to the segment's clip, to what the weights have."""
    gradients = tuple(g.to_dense() if g is not None and g.is_sparse else g for g in gradients)
    squares = sum(float(g.double().square().sum()) for g in gradients if g is not None)
    if squares == 0:  # as if it were not there: the noise follows from the sums, and from their absence
        return
    factor = min(1.0, dp.max_grad_norm / math.sqrt(SEGMENTS) / math.sqrt(squares))
    for weight, gradient in zip(trainable, gradients, strict=True):
        if gradient is not None:
            clipped = gradient * factor
            weight.grad = clipped if weight.grad is None else weight.grad + clipped


@torch.no_grad()
def add_noise(trainable: Sequence[Tensor], dp: DpSpec, noise_multiplier: float, key: Key) -> None:
    """Make the sums in `.grad` noisy means over the expected batch."""
    for place, weight in enumerate(trainable):
        noise = torch.empty_like(weight, memory_format=torch.contiguous_format)
        fill(noise, "normal", (0.0, noise_multiplier * dp.max_grad_norm), key.at(place))
        total = noise if weight.grad is None else weight.grad + noise
        weight.grad = total / dp.expected_batch


def noise_key(key: Key, role: str, step: int, trainable: Sequence[Tensor], losses: Sequence[float]) -> Key:
    """Return the key of a segment's noise, from the sums of gradients in `trainable` and each sample's loss.

    A step that is taken again with other values gets other noise.
    """
    sums = ["-" if weight.grad is None else strong_digest(weight.grad) for weight in trainable]
    return key.at("dp", role, step, *sums, strong_digest(torch.tensor(losses, dtype=torch.float64)))


def for_the_body(key: Key, multiplier: float) -> BodyNoise:
    """Return the noise of a key as it travels."""
    return BodyNoise(key.stream(KEY_BYTES).hex(), multiplier)


def from_the_device(noise: BodyNoise) -> Key:
    """Return the key of a noise that came."""
    return Key(bytes.fromhex(noise.key))


def row_gradients(
    loss: LossFunction, outputs: Sequence[Tensor], targets: Sequence[Tensor], measure: Measure
) -> tuple[list[float], list[Tensor]]:
    """The loss of each sample by itself, 0 where nothing of it has a label, and the outputs' gradients."""
    losses: list[float] = []
    rows: list[list[Tensor]] = []
    for row in range(outputs[0].shape[0]):
        leaves = [output[row : row + 1].detach().requires_grad_() for output in outputs]
        wanted = tuple(target[row : row + 1] for target in targets)
        if not measure.elements(wanted):
            losses.append(0.0)
            rows.append([torch.zeros_like(leaf) for leaf in leaves])
            continue
        value = loss(tuple(leaves), wanted)
        made = torch.autograd.grad(value, leaves, allow_unused=True)
        losses.append(float(value.detach()))
        rows.append([torch.zeros_like(x) if g is None else g for x, g in zip(leaves, made, strict=True)])
    return losses, [torch.cat(column) for column in zip(*rows, strict=True)]


def _joined(outputs: Sequence[Values]) -> Values:
    """The outputs of all samples, detached; gradients can be asked of what has some."""
    joined = []
    for column in zip(*outputs, strict=True):
        tensors = [value for value in column if isinstance(value, Tensor)]
        whole = torch.cat([tensor.detach() for tensor in tensors])
        joined.append(whole.requires_grad_(tensors[0].requires_grad))
    return tuple(joined)


def segment_trainer(
    segment: Segment, spec: JobSpec, *, device: str, role: str, key: Key | None = None
) -> SegmentTrainer:
    """The trainer that a job's settings ask for."""
    if spec.privacy.dp is None:
        return SegmentTrainer(segment, spec, device=device, role=role, key=key)
    trainer = PrivateTrainer(segment, spec, device=device, role=role, key=key)
    trainer.dp = spec.privacy.dp
    return trainer
