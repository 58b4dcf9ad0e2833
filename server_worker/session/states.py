"""The states of a session on a worker, and the transitions between them.

    ABSENT ──▶ READY ──▶ IN_STEP ──▶ READY of the next step
               READY ──▶ WAITING ──▶ IN_STEP
               READY ──▶ ROUND_END ──▶ READY

The session keeps no state beside what it holds: `WorkerSession.state` reads it off. Whatever puts that in
doubt (a rival, an answer of the store that does not come, an error of the engine) throws it away, and the
next request loads it again; a request that is refused ends the step that is open.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from broker.protocol import messages as m


class State(Enum):
    """The states of a session on a worker. `TRANSITIONS` says what ends each."""

    ABSENT = "nothing of it is loaded"
    READY = "loaded, after a committed step"
    WAITING = "requests of the next step wait for earlier ones"
    IN_STEP = "computing the next step"
    ROUND_END = "waiting for the round's mean"


Request = type[m.Request]


def _to(*states: State) -> frozenset[State]:
    return frozenset(states)


_S = State
_BEGIN: dict[Request, frozenset[State]] = {
    m.Forward: _to(_S.WAITING, _S.IN_STEP),
    m.Recall: _to(_S.WAITING, _S.IN_STEP),
    m.Backward: _to(_S.WAITING),
    m.Ready: _to(_S.ROUND_END),
}
"""The ways into a step: micro-batch 0 opens it, what comes before its turn waits."""

TRANSITIONS: Mapping[State, Mapping[Request, frozenset[State]]] = {
    _S.ABSENT: {
        **{kind: _to(_S.READY) for kind in (m.Open, m.Ask, m.Eval, m.GetBody, m.Close)},
        **{kind: after | {_S.READY} for kind, after in _BEGIN.items()},
    },
    _S.READY: _BEGIN,
    _S.WAITING: {
        m.Forward: _to(_S.IN_STEP, _S.READY),
        m.Recall: _to(_S.IN_STEP, _S.READY),
        m.Ready: _to(_S.ROUND_END),
    },
    _S.IN_STEP: {
        m.Forward: _to(_S.READY, _S.WAITING),
        m.Recall: _to(_S.READY, _S.WAITING),
        m.Backward: _to(_S.READY, _S.WAITING),
        m.Ready: _to(_S.ROUND_END),
    },
    _S.ROUND_END: {**_BEGIN, m.Ready: _to(_S.READY), m.Ask: _to(_S.READY)},
}
"""The states that may follow each state, by the request. What is not listed changes no state."""
EVERYWHERE = _to(_S.ABSENT, _S.READY)
"""These may follow every state on every request: what was in doubt is gone, or was loaded again since, and a
request that is refused gives up the step."""


def transition(before: State, request: m.Request, after: State) -> bool:
    """Return whether the table has a way from `before` to `after` on that request."""
    listed = TRANSITIONS[before].get(type(request), frozenset())
    return after is before or after in listed or after in EVERYWHERE
