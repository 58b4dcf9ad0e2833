"""The best evaluation of a training by one number, and the end of one that no longer improves.

What is kept follows from the evaluations alone, and each of them from the state after its step: an agent
that was restarted finds the same best step, and stops at the same one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite, nan

import torch
from torch import Tensor

from spliteasy.job.spec import EvaluationSpec

KEY = "best-evaluation"
"""The name of what a checkpoint keeps of it."""

_MARK_DIGITS = 12
"""So many hexadecimal digits of a digest are a whole number that float64 holds exactly."""


@dataclass(slots=True)
class BestEvaluation:
    """The best evaluation so far, and how many have come since."""

    spec: EvaluationSpec
    digest: str = "0" * 64
    """The digest of the job's version: the evaluations of another are no measure for it."""
    best: float = nan
    """NaN: no evaluation was a number yet."""
    best_step: int = 0
    """0: there is none yet."""
    waited: int = 0
    """Evaluations since the best one."""
    judged: int = -1
    """The step of the last evaluation that was judged."""
    ended: int = 0
    """The steps in all of a training that has ended and gone back to its best; 0 before."""

    @property
    def finished(self) -> bool:
        """Return whether the evaluations end the training."""
        return self.spec.patience is not None and self.waited >= self.spec.patience

    @property
    def kept(self) -> int:
        """Return the step whose state is kept as the best; 0 where there is none."""
        return self.best_step if self.spec.keep_best else 0

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

    def about(self) -> str:
        """Say for a person which evaluation was the best."""
        return f"{self.spec.chosen_by} was best ({self.best:.4g}) after step {self.best_step}"

    def why(self) -> str:
        """Say for a person why the training ends."""
        return f"the training ends: {self.about()}, and {self.waited} evaluations since were no better"

    def at_the_end(self, total_steps: int) -> BestEvaluation:
        """Return what the best step's checkpoint keeps once the training has ended, and goes back there."""
        return replace(self, waited=0, judged=self.best_step, ended=total_steps)

    def state(self) -> Tensor:
        """Return what a checkpoint keeps."""
        counts = (self.best_step, self.waited, self.judged, self.ended)
        return torch.tensor([self._mark, self.best, *counts], dtype=torch.float64)

    def load_state(self, state: Tensor | None) -> None:
        """Take over what `state` gave; None, or that of another version, stands for a training that
        begins."""
        said = [] if state is None else state.tolist()
        if not said or said[0] != self._mark:
            said = [self._mark, nan, 0.0, 0.0, -1.0, 0.0]
        _, self.best, *counts = said
        self.best_step, self.waited, self.judged, self.ended = map(int, counts)

    @property
    def _mark(self) -> float:
        return float(int(self.digest[:_MARK_DIGITS], 16))
