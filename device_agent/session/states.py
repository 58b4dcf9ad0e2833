"""The states of a device's session, and which may follow which.

Per step:

    HEAD ─▶ FORWARDING ─▶ TAIL ─▶ BACKWARDING ─▶ APPLYING ─▶ SAVING ─▶ EVAL… ─▶ HEAD of the next
    (single split, and so no tail: FORWARDING ─▶ APPLYING)

At the end of a round of a fleet a step goes another way:

    HANDING_IN ─▶ ROUND_END ─▶ APPLYING ─▶ …

Where the device may not go on for now (`Hold`), the next HEAD waits in PAUSED, with a checkpoint on disk.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """The states of a session. Each has one event that ends it; see `_EDGES`."""

    RAISING = "raising the attempt"
    OPENING = "opening"
    RESTORING = "restoring"
    PAUSED = "paused"
    HEAD = "computing the head"
    FORWARDING = "waiting for the body's outputs"
    TAIL = "computing the tail"
    BACKWARDING = "waiting for the gradient"
    APPLYING = "taking the step"
    HANDING_IN = "reading out what the round gets"
    ROUND_END = "waiting for the round's mean"
    SAVING = "writing a checkpoint"
    EVAL_HEAD = "evaluating the head"
    EVALUATING = "waiting for an evaluation"
    EVAL_TAIL = "evaluating the tail"
    CLOSING = "closing"
    ENDED = "ended"


_S = State
_EDGES: dict[State, frozenset[State]] = {
    _S.RAISING: frozenset({_S.OPENING}),
    _S.OPENING: frozenset({_S.RESTORING, _S.RAISING}),
    _S.RESTORING: frozenset({_S.HEAD, _S.HANDING_IN, _S.PAUSED, _S.EVAL_HEAD, _S.CLOSING}),
    _S.PAUSED: frozenset({_S.HEAD, _S.HANDING_IN, _S.SAVING}),
    _S.HEAD: frozenset({_S.HEAD, _S.FORWARDING, _S.TAIL, _S.APPLYING, _S.SAVING}),
    _S.FORWARDING: frozenset({_S.TAIL, _S.APPLYING, _S.SAVING}),
    _S.TAIL: frozenset({_S.TAIL, _S.FORWARDING, _S.BACKWARDING, _S.APPLYING, _S.SAVING}),
    _S.BACKWARDING: frozenset({_S.APPLYING, _S.SAVING}),
    _S.APPLYING: frozenset(
        {
            *(_S.APPLYING, _S.TAIL, _S.FORWARDING, _S.BACKWARDING),  # of another micro-batch
            *(_S.SAVING, _S.EVAL_HEAD, _S.CLOSING, _S.HEAD, _S.HANDING_IN),
        }
    ),
    _S.HANDING_IN: frozenset({_S.ROUND_END, _S.SAVING}),
    _S.ROUND_END: frozenset({_S.APPLYING, _S.SAVING}),
    _S.SAVING: frozenset({_S.RAISING, _S.EVAL_HEAD, _S.CLOSING, _S.HEAD, _S.HANDING_IN, _S.PAUSED}),
    _S.EVAL_HEAD: frozenset({_S.EVALUATING}),
    _S.EVALUATING: frozenset({_S.EVAL_TAIL, _S.SAVING}),
    _S.EVAL_TAIL: frozenset({_S.EVAL_HEAD, _S.CLOSING, _S.HEAD, _S.HANDING_IN, _S.PAUSED}),
    _S.CLOSING: frozenset({_S.SAVING}),
    _S.ENDED: frozenset(),
}
WAITING = frozenset({_S.OPENING, _S.FORWARDING, _S.BACKWARDING, _S.ROUND_END, _S.EVALUATING, _S.CLOSING})
"""In these states the session waits for an answer."""
COMPUTING = frozenset({_S.HEAD, _S.TAIL, _S.APPLYING, _S.HANDING_IN})
"""In these states the session computes a step, while requests of its other micro-batches may be on the way.
"""


def moved(state: State, to: State) -> State:
    """`to`, if it may follow `state`."""
    if to not in _EDGES[state]:
        raise AssertionError(f"no way from {state} to {to}")
    return to
