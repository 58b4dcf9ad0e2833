"""A device's guard against a worker that trains its head for another purpose.

Under honest training the gradients that come back for two samples of one class are more alike than those of
two classes, because they come from gradients that the device made of its loss. A hijacker's gradients know no
classes. The guard compares how much of the classes shows in what comes back with how much showed in what was
sent, over a window of steps, and gives alarm where little of it is left.

Source: Fu et al., "Focusing on Pinocchio's nose" (NDSS 2023), the likeness of gradients by class; Erdoğan et
al., SplitOut (arXiv 2302.08618), for judging a window and not a step.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from spliteasy.privacy.statistics import normalized

WINDOW = 12
"""Steps that are judged together."""

TOLD = 0.1
"""The classes' difference that what was sent must have for a judgement: noise on gradients hides it."""

LEAST = 0.25
"""The gradients that come back must keep this share of the classes' difference in what was sent."""


class HijackGuard:
    """Takes the gradients of each step; `alarm` says whether the newest window looks hijacked."""

    def __init__(self, *, window: int = WINDOW, least: float = LEAST) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=window)
        self._window, self._least = window, least

    def saw(self, returned: Tensor, sent: Tensor, labels: Tensor) -> None:
        """The gradients that came back (ga) and that were sent (gb), a row for each sample, and the classes.

        A step without two samples of a class, or of one class only, says nothing and is left out.
        """
        same = labels[:, None] == labels[None, :]
        pairs = same & ~torch.eye(len(labels), dtype=torch.bool)
        if bool(pairs.any()) and bool((~same).any()):
            self._seen.append((_apart(returned, pairs, ~same), _apart(sent, pairs, ~same)))

    @property
    def alarm(self) -> bool:
        """False until the first window is full."""
        if len(self._seen) < self._window:
            return False
        returned = sum(pair[0] for pair in self._seen)
        sent = sum(pair[1] for pair in self._seen)
        return sent > TOLD * self._window and returned < self._least * sent


def _apart(gradients: Tensor, same: Tensor, other: Tensor) -> float:
    """Return how much more alike the rows of one class are than those of two: a difference of mean
    cosines."""
    rows = normalized(gradients - gradients.mean(0))
    alike = rows @ rows.T
    return float(alike[same].mean() - alike[other].mean())
