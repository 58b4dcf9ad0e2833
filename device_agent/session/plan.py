"""The plan of a device's session, from its job, its data and the agent's settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """The plan of a session, from the device's job and data."""

    session: str
    digest: str
    total_steps: int
    """Steps in all: those that train, and those that go on from a mean (`is_round_end`)."""
    checkpoint_every: int
    eval_every: int
    """Steps that train between two evaluations; 0: only at the end."""
    round_steps: int = 0
    """Steps that train between two means of a fleet; 0: there are no rounds."""
    means_per_round: int = 1
    """Means of a round: one, or as many as a round has windows of a shared body."""
    eval_batches: int
    """Batches of one evaluation; 0: no test data."""
    has_tail: bool
    stops_early: bool = False
    """Evaluations are judged: one may end the training, or be the best so far. Each comes before the
    checkpoint of its step is written, which has what was judged."""
    micro_batches: int = 1
    takeover: bool = False
    """Go on even if the store knows a newer attempt of this device."""
    restart: bool = False
    """Begin at step 0, whatever the store has."""
    previous: str | None = None
    """The version that the checkpoints were trained on before `digest` went on from them."""
    reply_timeout_s: float = 10.0
    stop_grace_s: float = 3.0
    retry_s: float = 1.0
    ask_above_bytes: int = 1 << 20
    """Requests with more bytes are asked about before they are sent where an agent before this one may have
    begun the step: the worker may have a part."""
    rows_per_epoch: int = 0
    """Samples of an epoch, where their rows come again in the next and the worker may keep them; else 0."""
    agent: str | None = None
    """This agent's version."""

    def is_round_end(self, step: int) -> bool:
        """Return whether `step` trains nothing, and goes on from the mean of a round instead; the first one
        does.
        """
        return self.round_steps > 0 and step % (self.round_steps + 1) == 1

    def keeps(self, step: int) -> bool:
        """Return whether a checkpoint is written after `step`: now and then, and wherever a mean was gone on
        from. What was handed in before is in that mean, so that the device must never take it again.
        """
        return step % self.checkpoint_every == 0 or self.is_round_end(step)

    def trained(self, step: int) -> int:
        """Return how many of the steps up to `step` train."""
        period = self.round_steps + 1
        return step - (step + period - 1) // period if self.round_steps else step

    def evaluates_after(self, step: int) -> bool:
        """Return whether an evaluation is due after `step`: in a fleet, of a common model only."""
        if step >= self.total_steps:
            return True
        if not self.eval_every or not self.trained(step):
            return False
        if not self.round_steps:
            return step % self.eval_every == 0
        trained, whole = self.trained(step), self.round_steps * self.means_per_round
        ends_round = self.is_round_end(step) and trained % whole == 0
        return ends_round and trained // self.eval_every > (trained - whole) // self.eval_every
