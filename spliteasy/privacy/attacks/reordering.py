"""Put shuffled tokens back: learn from auxiliary data which place a token comes from, by the token alone.

Where the head adds positions to its tokens, each tells of its place, and an adversary that knows the head
undoes `[privacy] shuffle_tokens`. Without this, attacks on it would measure their own naivety.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spliteasy.privacy.statistics import ridge


def put_in_order(known: Tensor, seen: Tensor) -> Tensor:
    """Return `seen` [samples, tokens, features] with each token at the place that it looks like.

    `known`: tokens in their own order, of other samples. Each place is given away once, the surest first.
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
