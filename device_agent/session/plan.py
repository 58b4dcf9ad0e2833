"""The plan of a device's session, from its job, its data and the agent's settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """The plan of a session, from the device's job and data."""

    session: str
    digest: str
    total_steps: int
    checkpoint_every: int
    eval_every: int
    """Steps between evaluations; 0: only at the end."""
    eval_batches: int
    """Batches of one evaluation; 0: no test data."""
    has_tail: bool
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
    agent: str | None = None
    """This agent's version."""
