"""The place of a device in a fleet's rounds, as its checkpoints keep it."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RoundPlace:
    """The round that a device trains for, and what it has done in it."""

    round: int = 0
    """The number of the record that it trains for; 0: no round has begun."""
    opened: int = 0
    """The record that began the round: the one before, but where a body is shared and rounds have windows."""
    drawn: int = 0
    """The number of devices drawn for the round."""
    samples: int = 0
    """Samples that it has trained on since it went on from a mean."""
    round_samples: int = 0
    """Those of the whole round."""
    steps: int = 0
    """Steps that it has taken in the round."""

    def trained(self, samples: int) -> RoundPlace:
        """Return the place after a step on so many samples; one without effect counts as a step, too."""
        return replace(
            self,
            samples=self.samples + samples,
            round_samples=self.round_samples + samples,
            steps=self.steps + 1,
        )

    def gone_on(self, round_: int, *, opened: int, drawn: int, kept: bool) -> RoundPlace:
        """Return the place after it has gone on from record `round_`; `kept`: in the middle of its round."""
        if kept and opened == self.opened:
            return replace(self, round=round_ + 1, drawn=drawn, samples=0)
        return RoundPlace(round_ + 1, opened, drawn)

    def as_tensor(self) -> Tensor:
        """Return it as a checkpoint keeps it."""
        return torch.tensor(astuple(self))

    @classmethod
    def of(cls, tensor: Tensor | None) -> RoundPlace:
        return cls() if tensor is None else cls(*tensor.tolist())
