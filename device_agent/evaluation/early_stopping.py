"""The end of a training that no longer improves, by one number of its evaluations.

What is kept follows from the evaluations alone, and each of them from the state after its step: an agent
that was restarted stops at the same step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, nan

import torch
from torch import Tensor

from spliteasy.job.spec import EvaluationSpec

KEY = "early-stopping"
"""The name of what a checkpoint keeps of it."""


@dataclass(slots=True)
class EarlyStopping:
    """The best evaluation so far, and how many have come since."""

    spec: EvaluationSpec
    best: float = nan
    """NaN: no evaluation was a number yet."""
    best_step: int = 0
    waited: int = 0
    """Evaluations since the best one."""
    judged: int = -1
    """The step of the last evaluation that was judged."""

    @property
    def finished(self) -> bool:
        return self.waited >= (self.spec.patience or 0)

    def judge(self, step: int, value: float | None) -> None:
        """Take the evaluation after `step`. One that was judged before, or is no number, improves nothing."""
        if step == self.judged:
            return
        self.judged = step
        found = nan if value is None else value
        gain = self.best - found if self.spec.lower_is_better else found - self.best
        if isfinite(found) and not gain <= self.spec.min_delta:
            self.best, self.best_step, self.waited = found, step, 0
        else:
            self.waited += 1

    def why(self) -> str:
        """Say for a person why the training ends."""
        return (
            f"the training ends: {self.spec.chosen_by} was best ({self.best:.4g}) after step "
            f"{self.best_step}, and {self.waited} evaluations since were no better"
        )

    def state(self) -> Tensor:
        """Return what a checkpoint keeps."""
        return torch.tensor([self.best, self.best_step, self.waited, self.judged], dtype=torch.float64)

    def load_state(self, state: Tensor | None) -> None:
        """Take over what `state` gave; None stands for a training that begins."""
        best, *counts = [nan, 0.0, 0.0, -1.0] if state is None else state.tolist()
        self.best = best
        self.best_step, self.waited, self.judged = map(int, counts)
