"""Membership: was this sample trained on? Measured as true positives at 1 % false ones.

`Membership` asks the released model: it has a lower loss on what it was trained on. `Match` asks the wire:
the adversary runs candidates through the head that it knows, and looks for their activations among those of
the first epoch.

Sources: Yeom et al. (CSF 2018) for the loss; Carlini et al. (S&P 2022) for the measure.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spliteasy.privacy.attacks.base import WIRE, believed_head, crossing
from spliteasy.privacy.guesses import MembershipGuess
from spliteasy.privacy.record import Adversary, View, rows_of
from spliteasy.privacy.statistics import normalized
from spliteasy.training.segment_trainer import tensors_of


class Membership:
    name = "membership"
    adversaries = frozenset({Adversary.HOLDER})
    source = "Yeom et al. (CSF 2018); measured as Carlini et al. (S&P 2022)"

    def refuses(self, view: View) -> str | None:
        return no_candidates(view)

    @torch.no_grad()
    def run(self, view: View) -> MembershipGuess:
        released = view.released
        assert released is not None
        job = view.job
        head, body = job.head.spawn().eval(), job.body.spawn().eval()
        head.load_state_dict(released.head)
        body.load_state_dict(released.body)
        values = head(*view.candidates)
        wire, kept = values[: head.n_wire], values[head.n_wire :]
        outputs = body(*wire)
        if job.tail is not None and released.tail is not None:
            tail = job.tail.spawn().eval()
            tail.load_state_dict(released.tail)
            outputs = tail(*outputs, *kept)
        made, count = tensors_of(outputs), len(job.signature.outputs)
        losses = [
            job.loss(
                (*(y[i : i + 1] for y in made[:count]), *made[count:]),  # the loss's own parameters last
                tuple(y[i : i + 1] for y in view.candidate_targets),
            )
            for i in range(len(view.candidates[0]))
        ]
        return MembershipGuess(confidence=-torch.stack(losses))


class Match:
    name = "membership-match"
    adversaries = WIRE
    source = "own: nearest neighbour among the activations of the first epoch"

    def refuses(self, view: View) -> str | None:
        return no_candidates(view)

    @torch.no_grad()
    def run(self, view: View) -> MembershipGuess:
        head = believed_head(view)
        seen = normalized(view.activations(view.first_epoch))
        batch = view.steps[0][0].samples
        nearest: list[Tensor] = []
        for start in range(0, len(view.candidates[0]), batch):
            # Overlapping the last batch, because batch norm needs as many samples as the device has.
            first = max(0, min(start, len(view.candidates[0]) - batch))
            part = tuple(x[first : first + batch] for x in view.candidates)
            rows = normalized(rows_of(crossing(head, part), len(part[0])))
            nearest.append((rows @ seen.T).max(1).values[start - first :])
        return MembershipGuess(confidence=torch.cat(nearest))


def no_candidates(view: View) -> str | None:
    """Why membership can't be asked."""
    return None if view.candidates else "there are no samples that were not trained on"
