"""The oracle: the same training steps by the plain model and by its segments, compared bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spliteasy import Segment, Split
from spliteasy.graph.document import Value

Batch = tuple[Tensor, ...]


def train_plainly(model: nn.Module, batches: Iterable[Batch], lr: float = 0.05) -> dict[str, Tensor]:
    """Train the model in place; everything that a step gives, by a name that says what it is."""
    seen: dict[str, Tensor] = {}
    optimizer = _sgd(model, lr)
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        outputs = [out for out in pytree.tree_leaves(model(*batch)) if isinstance(out, Tensor)]
        loss = loss_of(outputs)
        loss.backward()
        _note(seen, step, outputs, loss, dict(model.named_parameters(remove_duplicate=False)))
        optimizer.step()
        optimizer.zero_grad()
    return seen | {f"end {name}": value.detach().clone() for name, value in model.state_dict().items()}


def train_split(split: Split, batches: Iterable[Batch], lr: float = 0.05) -> dict[str, Tensor]:
    """The same by segments, each gradient carried over by hand as the wire would."""
    seen: dict[str, Tensor] = {}
    optimizers = [_sgd(segment, lr) for segment in split.segments if list(segment.parameters())]
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        outputs, loss = step_split(split, batch)
        parameters = {k: v for s in split.segments for k, v in s.named_parameters(remove_duplicate=False)}
        _note(seen, step, outputs, loss, parameters)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return seen | {f"end {name}": value.detach().clone() for name, value in split.state_dict().items()}


def step_split(split: Split, batch: Batch) -> tuple[list[Tensor], Tensor]:
    """Forward and backward through the segments; gradients are left on the parameters."""
    made = split.head(*batch)
    up = received(made[: split.head.n_wire])
    skips = received(made[split.head.n_wire :])
    middle = split.body(*up)
    down: list[Value] = []
    outputs = middle
    if split.tail is not None:
        down = received(middle)
        outputs = split.tail(*down, *skips)
    tensors = [out for out in outputs if isinstance(out, Tensor)]
    loss = loss_of(tensors)
    loss.backward()
    if split.tail is not None:
        send_back(middle, down)
    send_back(made, [*up, *skips])
    return tensors, loss


def received(values: Sequence[Value]) -> list[Value]:
    """Return the values as the other side sees them: its own, needing a gradient where the original does.

    Strides are kept where the tensor is dense, as the wire keeps them.
    """
    return [
        value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)
        if isinstance(value, Tensor)
        else value
        for value in values
    ]


def send_back(made: Sequence[Value], leaves: Sequence[Value]) -> None:
    pairs = [(m, leaf.grad) for m, leaf in zip(made, leaves, strict=True) if isinstance(leaf, Tensor)]
    pairs = [(m, grad) for m, grad in pairs if grad is not None]
    if pairs:
        sent = [grad.clone(memory_format=torch.preserve_format) for _, grad in pairs]
        torch.autograd.backward([m for m, _ in pairs], sent)


def loss_of(outputs: Sequence[Tensor]) -> Tensor:
    """A loss that weighs every element differently."""
    total = torch.zeros(())
    for out in outputs:
        if out.dtype.is_floating_point:
            weights = torch.linspace(-1.0, 2.0, out.numel(), dtype=out.dtype).reshape(out.shape)
            total = total + (out * weights).mean() + 0.1 * (out * out).mean()
    return total


def differences(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference by name, of what differs at all; what only one side has counts as infinite."""
    found = {name: float("inf") for name in left.keys() ^ right.keys()}
    for name in left.keys() & right.keys():
        if not torch.equal(left[name], right[name]):
            found[name] = float((left[name].double() - right[name].double()).abs().max())
    return found


def spawned(split: Split) -> Split:
    """The same split with tensors of its own: to train it and keep the first one fresh."""
    parts: list[Segment] = [segment.spawn() for segment in split.segments]
    return Split(
        head=parts[0],
        body=parts[1],
        tail=parts[2] if len(parts) > 2 else None,
        boundaries=split.boundaries,
        skips=split.skips,
        regrouped=split.regrouped,
    )


def compare(model: nn.Module, split: Split, batches: Sequence[Batch], lr: float = 0.05) -> dict[str, float]:
    """Differences over a training run and the evaluation after it. Neither argument changes."""
    plain, parts = copy.deepcopy(model), spawned(split)
    found = differences(train_plainly(plain, batches, lr), train_split(parts, batches, lr))
    plain.eval()
    parts.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        expected = [out for out in pytree.tree_leaves(plain(*batches[0])) if isinstance(out, Tensor)]
        torch.manual_seed(0)
        made = parts.head(*batches[0])
        got = parts.body(*made[: parts.head.n_wire])
        if parts.tail is not None:
            got = parts.tail(*got, *made[parts.head.n_wire :])
    for place, (want, have) in enumerate(zip(expected, got, strict=True)):
        assert isinstance(have, Tensor)
        if not torch.equal(want, have):
            found[f"eval output {place}"] = float((want - have).abs().max())
    return found


def _sgd(module: nn.Module, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(
        module.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4, foreach=False, fused=False
    )


def _note(
    seen: dict[str, Tensor], step: int, outputs: Sequence[Tensor], loss: Tensor, parameters: dict[str, Tensor]
) -> None:
    seen[f"{step} loss"] = loss.detach().clone()
    seen |= {f"{step} output {place}": out.detach().clone() for place, out in enumerate(outputs)}
    seen |= {f"{step} grad {n}": p.grad.detach().clone() for n, p in parameters.items() if p.grad is not None}
