"""The states of a device's session, and the transitions between them.

Per step:

    HEAD ─▶ FORWARDING ─▶ TAIL ─▶ BACKWARDING ─▶ APPLYING ─▶ SAVING ─▶ EVAL… ─▶ HEAD of the next
    (single split, and so no tail: FORWARDING ─▶ APPLYING)

At the end of a round of a fleet a step goes another way:

    HANDING_IN ─▶ ROUND_END ─▶ APPLYING ─▶ …

A training that keeps its best evaluation ends there:

    CLOSING after the last step ─▶ GOING_BACK ─▶ RAISING ─▶ … RESTORING of the best step ─▶ EVAL… ─▶ CLOSING

Where the device may not go on for now (`Hold`), the next HEAD waits in PAUSED, with a checkpoint on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from broker.protocol import messages as m
from device_agent.session import events as e
from device_agent.session.events import Event, Timer


class State(Enum):
    """The states of a session. `TRANSITIONS` says what ends each."""

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
    GOING_BACK = "going back to the best evaluation"
    EVAL_HEAD = "evaluating the head"
    EVALUATING = "waiting for an evaluation"
    EVAL_TAIL = "evaluating the tail"
    CLOSING = "closing"
    ENDED = "ended"


Occasion = type[Event] | type[m.Reply] | Timer
"""The kind of event that a transition happens on: a message stands for its arrival, a timer for its end."""


def _to(*states: State) -> frozenset[State]:
    return frozenset(states)


_S = State
_BEGIN = (_S.HEAD, _S.HANDING_IN, _S.PAUSED)
"""The states in which a step begins, or is held back."""
_WAIT: dict[Occasion, frozenset[State]] = {
    m.Reopen: _to(_S.SAVING),
    m.SessionReply: _to(_S.SAVING),  # of an older owner, about what was asked again: the store went back
    e.StopAsked: _to(_S.SAVING),
}
"""The ways out of every wait for an answer but the answer, once the session is open."""
_WAIT_IN_STEP: dict[Occasion, frozenset[State]] = {**_WAIT, Timer.STOP: _to(_S.SAVING)}

TRANSITIONS: Mapping[State, Mapping[Occasion, frozenset[State]]] = {
    _S.RAISING: {e.AttemptRaised: _to(_S.OPENING), e.StopAsked: _to(_S.ENDED)},
    _S.OPENING: {m.Opened: _to(_S.RESTORING), m.Superseded: _to(_S.RAISING), e.StopAsked: _to(_S.ENDED)},
    _S.RESTORING: {e.Restored: _to(*_BEGIN, _S.EVAL_HEAD, _S.CLOSING), e.StopAsked: _to(_S.ENDED)},
    _S.PAUSED: {e.Go: _to(_S.HEAD, _S.HANDING_IN), e.StopAsked: _to(_S.SAVING)},
    _S.HEAD: {e.HeadDone: _to(_S.HEAD, _S.FORWARDING, _S.TAIL, _S.APPLYING, _S.SAVING)},
    _S.FORWARDING: {m.Forwarded: _to(_S.TAIL), m.Gradient: _to(_S.APPLYING), **_WAIT_IN_STEP},
    _S.TAIL: {e.TailDone: _to(_S.TAIL, _S.FORWARDING, _S.BACKWARDING, _S.APPLYING, _S.SAVING)},
    _S.BACKWARDING: {m.Gradient: _to(_S.APPLYING), **_WAIT_IN_STEP},
    _S.APPLYING: {
        e.HeadBackwardDone: _to(_S.APPLYING, _S.TAIL, _S.FORWARDING, _S.BACKWARDING, _S.SAVING),
        e.Applied: _to(_S.HEAD, _S.HANDING_IN, _S.SAVING, _S.EVAL_HEAD),
    },
    _S.HANDING_IN: {e.HandInDone: _to(_S.ROUND_END, _S.SAVING)},
    _S.ROUND_END: {m.Mean: _to(_S.APPLYING), **_WAIT},
    _S.SAVING: {e.Saved: _to(*_BEGIN, _S.RAISING, _S.EVAL_HEAD, _S.CLOSING, _S.ENDED)},
    _S.GOING_BACK: {e.WentBack: _to(_S.RAISING, _S.ENDED)},
    _S.EVAL_HEAD: {e.EvalHeadDone: _to(_S.EVALUATING, _S.SAVING)},
    _S.EVALUATING: {m.Evaluated: _to(_S.EVAL_TAIL), **_WAIT},
    _S.EVAL_TAIL: {e.EvalTailDone: _to(_S.HEAD, _S.PAUSED, _S.EVAL_HEAD, _S.SAVING, _S.CLOSING, _S.ENDED)},
    _S.CLOSING: {m.Closed: _to(_S.ENDED, _S.GOING_BACK), **_WAIT},
    _S.ENDED: {},
}
"""The states that may follow each state, by what happens. What is not listed changes no state."""
EVERYWHERE: Mapping[Occasion, frozenset[State]] = {m.Superseded: _to(_S.ENDED), m.Error: _to(_S.ENDED)}
"""The transitions that may happen in every state but ENDED."""

WAITING = frozenset({_S.OPENING, _S.FORWARDING, _S.BACKWARDING, _S.ROUND_END, _S.EVALUATING, _S.CLOSING})
"""In these states the session waits for an answer."""
COMPUTING = frozenset({_S.HEAD, _S.TAIL, _S.APPLYING, _S.HANDING_IN})
"""In these states the session computes a step, while requests of its other micro-batches may be on the way.
"""


def transition(before: State, event: Event, after: State) -> tuple[State | None, Occasion] | None:
    """Return the row of the table that leads from `before` to `after` on that event: its state (None for one
    of `EVERYWHERE`) and its occasion; None where no row does.
    """
    for occasion in _occasions(event):
        if after in TRANSITIONS[before].get(occasion, ()):
            return before, occasion
        if after in EVERYWHERE.get(occasion, ()):
            return None, occasion
    return None


def _occasions(event: Event) -> tuple[Occasion, ...]:
    """The occasions that an event may stand in the table as, the narrowest first."""
    match event:
        case e.Received(message=message):
            return type(message).__mro__
        case e.Fired(timer=timer):
            return (timer,)
    return (type(event),)
