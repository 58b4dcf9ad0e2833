"""Label attacks that know nothing of the model: the rows of one tensor fall into groups by class.

Each reads the newest whole epoch. Clusters get their names by the best one-to-one matching, and chance is
what the same matching gives for shuffled clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spliteasy.privacy.attacks.base import WIRE, no_classes
from spliteasy.privacy.guesses import LabelGuess
from spliteasy.privacy.record import View
from spliteasy.privacy.statistics import k_means, normalized


class _Clusters:
    """Groups the samples of the newest epoch."""

    name: str
    source: str
    adversaries = WIRE

    def refuses(self, view: View) -> str | None:
        return no_classes(view)

    def run(self, view: View) -> LabelGuess:
        assert view.classes is not None
        steps = view.last_epoch
        labels = self.group(view, steps, view.classes)
        return LabelGuess(labels=labels, steps=steps, classes=view.classes, clusters=True)

    def group(self, view: View, steps: range, classes: int) -> Tensor:
        raise NotImplementedError


class ClusterGradients(_Clusters):
    """k-means on the directions of gb: of a linear tail they are a function of the label, nearly."""

    name = "cluster-gradients"
    source = "own trial; Liu et al., clustering label inference (arXiv 2203.05222)"

    def group(self, view: View, steps: range, classes: int) -> Tensor:
        return k_means(normalized(view.output_gradients(steps)), classes)


class ClusterOutputs(_Clusters):
    """k-means on the directions of b: a body that classifies well has put the classes apart."""

    name = "cluster-outputs"
    source = "Sun et al., label leakage from forward embedding (arXiv 2203.01451)"

    def group(self, view: View, steps: range, classes: int) -> Tensor:
        rows = view.outputs(steps)
        return k_means(normalized(rows - rows.mean(0)), classes)


class Norm(_Clusters):
    """The length of gb: the rare class has the longer gradients. Meant for few and unequal classes."""

    name = "norm"
    source = "Li et al., Marvell (ICLR 2022, arXiv 2102.08504)"

    def group(self, view: View, steps: range, classes: int) -> Tensor:
        lengths = view.output_gradients(steps).norm(dim=1, keepdim=True)
        return k_means(lengths, classes)


class Cosine(_Clusters):
    """The angle of gb to a few leaders: the samples least alike lead, the others follow the nearest."""

    name = "cosine"
    source = "Li et al., Marvell (ICLR 2022, arXiv 2102.08504)"

    def group(self, view: View, steps: range, classes: int) -> Tensor:
        rows = normalized(view.output_gradients(steps))
        alike = rows @ rows.T
        leaders = [int(alike.mean(1).argmax())]
        while len(leaders) < min(classes, len(rows)):
            leaders.append(int(alike[:, leaders].max(1).values.argmin()))
        return alike[:, leaders].argmax(1)


class Spectral(_Clusters):
    """The strongest singular directions of the centred gb, clustered: outliers along them share a label."""

    name = "spectral"
    source = "Sun et al. (arXiv 2203.01451); Tran et al., spectral signatures (NeurIPS 2018)"

    def group(self, view: View, steps: range, classes: int) -> Tensor:
        rows = view.output_gradients(steps)
        rows = rows - rows.mean(0)
        left, strengths, _ = torch.linalg.svd(rows, full_matrices=False)
        kept = max(1, min(classes - 1, len(strengths)))
        return k_means(normalized((left * strengths)[:, :kept]) if kept > 1 else left[:, :1], classes)
