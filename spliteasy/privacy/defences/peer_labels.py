"""Labels that the other samples give: each sample trains on what its peers say, not on its own label.

A kernel ridge regression from inputs to classes is fitted to all samples but one and those that are nearly
the same, and its class for that one is the label that the one trains on. All of these left-out predictions
come from one inverse matrix. A label that nothing else tells (a canary) then does not depend on itself:
neither its gradients nor the trained model have it, whatever is computed from them. What similar samples tell
of a label stays.

Left-out predictions of ridge regression in closed form: Allen, PRESS (Technometrics 1974). Labels of
similar samples in place of a sample's own: Esfandiari et al., label differential privacy via clustering
(AISTATS 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from spliteasy.errors import DataError, JobError
from spliteasy.job.io_schema import Signature
from spliteasy.privacy.numbers import fill, permutation
from spliteasy.runtime.randomness import Key

BLOCK = 1024
"""Peers at most: a larger data set is divided at random into blocks, since time grows with the cube."""

LOOKS = 8
"""The number of looks at a sample that is augmented: two that were moved apart are alike in some looks."""

FEATURES = 4096
"""Numbers of a sample that are compared; longer inputs are folded to so many by random signs."""

NEIGHBOURS, TWIN = 5, 0.3
"""Samples are twins where their distance is at most TWIN times the usual distance of a fifth neighbour. They
have no say in each other's labels: one that is there twice would else tell its label by the other. More than
NEIGHBOURS of them are a crowd, in which one alone decides nothing."""

RIDGE = 0.3
WIDTH = 4.0
"""The kernel is the mean over pairs of looks of exp(−WIDTH · distance² / median distance²). Both are fixed:
chosen by the labels they would tell of them."""


def check_peer_labels(signature: Signature) -> None:
    """Raise JobError where inputs can't be compared by distance."""
    if not any(spec.dtype.startswith("float") for spec in signature.inputs):
        raise JobError(
            "[privacy] peer_labels compares inputs by their distance, and this job has no floating input",
            hint="use label_dp in its place",
        )


def features_of(inputs: Sequence[Tensor], key: Key) -> Tensor:
    """The numbers by which samples are compared: float64 [samples, FEATURES at most]."""
    rows = torch.cat([x.flatten(1).double() for x in inputs if x.is_floating_point()], dim=1)
    width = rows.shape[1]
    if width <= FEATURES:
        return rows
    signs = torch.empty(width, dtype=torch.float64)
    fill(signs, "bernoulli", (0.5,), key.at("signs"))
    signed = F.pad(rows * (2 * signs - 1), (0, -width % FEATURES))
    return signed.reshape(len(rows), -1, FEATURES).sum(1)


def peer_labels(looks: Sequence[Tensor], labels: Tensor, classes: int, key: Key) -> Tensor:
    """The label that the others give each sample, int64 [samples]. Raises DataError for one of no class.

    `looks`: the samples' features, once or several times.
    """
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"sample {index}: label {int(labels[index])} is none of the {classes} classes, and peer_labels "
            "has no answer for it",
            hint="leave the sample out where the data set makes it",
        )
    spoiled = torch.stack([~features.isfinite().all(1) for features in looks]).any(0)
    if bool(spoiled.any()):
        index = int(spoiled.nonzero()[0])
        raise DataError(
            f"sample {index}: an input is NaN or infinite, so that peer_labels can't compare it",
            hint="mend the sample, or leave it out, where the data set makes it",
        )
    order = torch.from_numpy(permutation(len(labels), key.at("blocks")))
    found = torch.empty_like(labels)
    for block in torch.tensor_split(order, -(-len(order) // BLOCK)):
        found[block] = _left_out([features[block] for features in looks], labels[block], classes)
    return found


def _left_out(looks: Sequence[Tensor], labels: Tensor, classes: int) -> Tensor:
    """The class of each sample by the regression that was fitted without it and without its twins."""
    squares = torch.cdist(looks[0], looks[0]).square()
    apart = squares[squares > 0]
    middle = apart.median() if apart.numel() else torch.ones((), dtype=torch.float64)
    kernel, nearest = torch.zeros_like(squares), squares
    for one in looks:
        for other in looks:
            squares = torch.cdist(one, other).square()
            kernel += (-WIDTH / middle * squares).exp()
            nearest = torch.minimum(nearest, squares)
    ridge = RIDGE * kernel.diagonal().mean()
    inverse = torch.linalg.inv(kernel + ridge * torch.eye(len(labels), dtype=torch.float64))
    wanted = F.one_hot(labels, classes).double() - 1 / classes
    # A sample's own target cancels out; without the diagonal it does so to the last bit.
    strength = inverse.diagonal().clone()
    others = inverse - torch.diag(strength)
    scores = -(others @ wanted) / strength[:, None]
    _without_twins(scores, _twins(nearest), inverse, wanted)
    found: Tensor = scores.argmax(1)
    return found


def _twins(squares: Tensor) -> Tensor:
    """Return who is whose twin, bool [samples, samples]; everybody is among the own ones."""
    squares = torch.minimum(squares, squares.T)
    place = min(NEIGHBOURS + 1, len(squares))
    usual = squares.kthvalue(place, dim=1).values.median()
    twins: Tensor = squares <= TWIN**2 * usual
    twins[twins.sum(1) > NEIGHBOURS + 1] = False
    twins.fill_diagonal_(True)
    return twins


def _without_twins(scores: Tensor, twins: Tensor, inverse: Tensor, wanted: Tensor) -> None:
    """Put the scores of samples that have twins in their places: by the regression without all of them."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for sample in (twins.sum(1) > 1).nonzero()[:, 0].tolist():
        groups.setdefault(tuple(twins[sample].nonzero()[:, 0].tolist()), []).append(sample)
    for group, samples in groups.items():
        members = torch.tensor(group)
        others = inverse[members]
        others[:, members] = 0
        found = -torch.linalg.solve(inverse[members][:, members], others @ wanted)
        for sample in samples:
            scores[sample] = found[group.index(sample)]
