"""Chance, intervals and matching: the arithmetic behind the scores. Deterministic by fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

Z = 1.959963984540054
"""The quantile of a two-sided interval of 95 %."""

PERMUTATIONS = 50
RESAMPLES = 1000

RIDGE = 1e-3
"""The penalty of ridge regression, in units of the mean squared norm."""


def wilson(share: float, samples: float) -> tuple[float, float]:
    """The Wilson score interval (95 %) of a share that was seen on so many independent samples."""
    if samples <= 0:
        return 0.0, 1.0
    square = Z * Z / samples
    centre = (share + square / 2) / (1 + square)
    half = Z * math.sqrt(share * (1 - share) / samples + square / (4 * samples)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: Tensor) -> tuple[float, float]:
    """The interval (95 %) of the mean of these values, by drawing them again with repetition."""
    if len(values) == 0:
        return float("nan"), float("nan")
    numbers = values.double().numpy()
    draws = np.random.default_rng(0).integers(0, len(numbers), size=(RESAMPLES, len(numbers)))
    low, high = np.quantile(numbers[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def best_matching(guessed: Tensor, true: Tensor, classes: int) -> Tensor:
    """The class that each cluster is named after: the one-to-one naming with the most hits, int64 [classes].

    Clusters have no names of their own, so that an attack that finds them is scored under the best names;
    `matched_chance` says what the same procedure gives for clusters that know nothing.
    """
    counts = torch.zeros(classes, classes, dtype=torch.float64)
    counts.index_put_((guessed, true), torch.ones(len(true), dtype=torch.float64), accumulate=True)
    return torch.tensor(_assign((counts.max() - counts).numpy()))


def matched_chance(guessed: Tensor, true: Tensor, counted: Tensor, classes: int) -> float:
    """The share of hits among `counted` rows under the best names, when the clusters are shuffled."""
    generator = torch.Generator().manual_seed(0)
    hits = 0.0
    for _ in range(PERMUTATIONS):
        shuffled = guessed[torch.randperm(len(guessed), generator=generator)]
        named = best_matching(shuffled, true, classes)[shuffled]
        hits += float((named == true)[counted].double().mean())
    return hits / PERMUTATIONS


def _assign(cost: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> list[int]:
    """The column of each row at the least total cost (the Hungarian method, with potentials)."""
    n = len(cost)
    rows, columns = np.zeros(n + 1), np.zeros(n + 1)
    row_of = np.zeros(n + 1, dtype=int)
    way = np.zeros(n + 1, dtype=int)
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        least, used = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=bool)
        while row_of[column]:
            used[column] = True
            here, delta, following = row_of[column], np.inf, 0
            for other in range(1, n + 1):
                if used[other]:
                    continue
                reduced = cost[here - 1, other - 1] - rows[here] - columns[other]
                if reduced < least[other]:
                    least[other], way[other] = reduced, column
                if least[other] < delta:
                    delta, following = least[other], other
            rows[row_of[used]] += delta
            columns[used] -= delta
            least[~used] -= delta
            column = following
        while column:
            row_of[column] = row_of[way[column]]
            column = way[column]
    found = [0] * n
    for column in range(1, n + 1):
        found[row_of[column] - 1] = column - 1
    return found


def normalized(rows: Tensor) -> Tensor:
    """Return each row at length 1."""
    directions: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return directions


def k_means(rows: Tensor, clusters: int, *, restarts: int = 8, rounds: int = 50) -> Tensor:
    """Return the cluster of each row: int64 [rows]. The best of several seeded k-means++ starts."""
    generator = torch.Generator().manual_seed(0)
    clusters = min(clusters, len(rows))
    best, best_cost = torch.zeros(len(rows), dtype=torch.int64), float("inf")
    for _ in range(restarts):
        centres = _spread(rows, clusters, generator)
        found = torch.zeros(len(rows), dtype=torch.int64)
        for _ in range(rounds):
            nearest = torch.cdist(rows, centres).argmin(dim=1)
            if bool((nearest == found).all()):
                break
            found = nearest
            counts = torch.bincount(found, minlength=clusters)
            sums = torch.zeros_like(centres).index_add_(0, found, rows)
            centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
        cost = float((rows - centres[found]).pow(2).sum())
        if cost < best_cost:
            best, best_cost = found, cost
    return best


def _spread(rows: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """First centres: each is drawn by its squared distance to those before it."""
    chosen = [int(torch.randint(len(rows), (), generator=generator))]
    while len(chosen) < clusters:
        far = torch.cdist(rows, rows[chosen]).min(dim=1).values.pow(2).clamp_min(1e-20)
        chosen.append(int(torch.multinomial(far, 1, generator=generator)))
    return rows[chosen].clone()


def ridge(features: Tensor, wanted: Tensor, seen: Tensor) -> Tensor:
    """Return what the `seen` features come from, as ridge regression from `features` learned it."""
    centre, target = features.mean(0), wanted.mean(0)
    x, y = (features - centre).double(), (wanted - target).double()
    # In the space of the samples, of which there are fewer than features as a rule.
    gram = x @ x.T
    gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    found: Tensor = (seen - centre).double() @ x.T @ torch.linalg.solve(gram, y) + target
    return found.float()


def put_in_order(known: Tensor, seen: Tensor) -> Tensor:
    """Return `seen` [samples, tokens, features] with each token at the place that it looks like.

    `known`: tokens in their own order, of other samples. Each place is given away once, the surest first.
    Where a head adds positions to its tokens, each tells of its place: so one who knows the head undoes
    `[privacy] shuffle_tokens`, and attacks that did not would measure their own naivety.
    """
    samples, tokens, features = seen.shape
    places = torch.eye(tokens).repeat(len(known), 1)
    scores = ridge(known.flatten(0, 1), places, seen.flatten(0, 1)).reshape(samples, tokens, tokens)
    order = torch.zeros(samples, tokens, dtype=torch.int64)
    rows = torch.arange(samples)
    for _ in range(tokens):
        best = scores.flatten(1).argmax(1)
        token, place = best // tokens, best % tokens
        order[rows, place] = token
        scores[rows, token] = -torch.inf
        scores[rows, :, place] = -torch.inf
    return seen.gather(1, order[:, :, None].expand(-1, -1, features))
