"""A device's machine, event by event: every row of its table of transitions is walked here.

A script is a list of states that a session goes through, each with the event that led there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from broker.protocol import messages as m
from device_agent.session import events as e
from device_agent.session.events import Timer
from device_agent.session.machine import DeviceSession
from device_agent.session.plan import SessionPlan
from device_agent.session.states import EVERYWHERE, TRANSITIONS, Occasion, State, transition
from spliteasy.codecs.packer import Packed
from spliteasy.errors import RemoteError, StateError

SESSION, DIGEST = "toy.phone-1", "0" * 64
VALUES = Packed((torch.ones(2, 3),))
S = State


class Walk:
    """A session that is told what happens, in the words of the table, and a worker that answers it."""

    def __init__(self, *, stored: int = 0, **plan: Any) -> None:
        wanted: dict[str, Any] = {
            "session": SESSION,
            "digest": DIGEST,
            "total_steps": 2,
            "checkpoint_every": 2,
            "eval_every": 0,
            "eval_batches": 0,
            "has_tail": True,
        }
        self.session = DeviceSession(SessionPlan(**{**wanted, **plan}), held=(stored,))
        self.step = stored
        self.fence = 2
        self.sent: dict[str, m.AnyRequest] = {}
        self.actions: list[e.Action] = []
        self.rows: list[tuple[State | None, Occasion, State]] = []
        """The rows that were walked: a row's state, what happened, the state after it."""
        self.session.start()
        self.tell(e.LinkUp())

    def tell(self, event: e.Event) -> State:
        before = self.session.state
        self.actions = self.session.handle(event)
        for action in self.actions:
            if isinstance(action, e.Send):
                self.sent[action.message.request] = action.message
        row = transition(before, event, self.session.state)
        if row is not None:
            self.rows.append((*row, self.session.state))
        return self.session.state

    # what the shell does

    def raised(self) -> State:
        return self.tell(e.AttemptRaised(m.AttemptRef(number=len(self.sent) + 1, nonce="0" * 16)))

    def restored(self) -> State:
        return self.tell(e.Restored((self.step,)))

    def head(self, samples: int = 4, batch: int = 4) -> State:
        return self.tell(e.HeadDone(VALUES, samples, (), batch))

    def tail(self) -> State:
        return self.tell(e.TailDone(VALUES))

    def returned(self) -> State:
        return self.tell(e.HeadBackwardDone())

    def applied(self) -> State:
        return self.tell(e.Applied())

    def handed_in(self) -> State:
        return self.tell(e.HandInDone(0, {}, None))

    def saved(self) -> State:
        return self.tell(e.Saved((self.session.step,)))

    def eval_head(self) -> State:
        return self.tell(e.EvalHeadDone(VALUES, 4))

    def eval_tail(self, *, more: bool = False, finished: bool = False, best: int = 0) -> State:
        return self.tell(e.EvalTailDone(more, finished, best))

    def stop(self) -> State:
        return self.tell(e.StopAsked())

    def hold(self) -> State:
        return self.tell(e.Hold("the battery is low"))

    def go(self) -> State:
        return self.tell(e.Go())

    def timer(self, timer: Timer) -> State:
        return self.tell(e.Fired(timer))

    # what the worker says

    def last(self, kind: type[m.AnyRequest], micro: int = 0) -> Any:
        found = [each for each in self.sent.values() if isinstance(each, kind)]
        return next(each for each in reversed(found) if getattr(each, "micro", 0) == micro)

    def _reply(self, reply: type[m.AnyReply], about: Any, **fields: Any) -> State:
        within = {} if reply is m.Error else {"attempt": about.attempt}
        if issubclass(reply, m.SessionReply):
            within["fence"] = self.fence
        return self.tell(
            e.Received(reply(session=SESSION, answers=about.request, **within, **fields))  # type: ignore[arg-type]
        )

    def opened(self) -> State:
        return self._reply(m.Opened, self.last(m.Open), step=self.step, durable_step=0)

    def superseded(self) -> State:
        return self._reply(m.Superseded, self.last(m.Open), newest=9)

    def reopen(self) -> State:
        return self._reply(m.Reopen, list(self.sent.values())[-1], reason="the store went back")

    def failed(self) -> State:
        return self._reply(m.Error, list(self.sent.values())[-1], code="internal", message="it failed")

    def doubted(self) -> State:
        """A worker that was the owner before answers what was asked about again."""
        self.timer(Timer.REPLY)
        about = list(self.sent.values())[-1]
        self.fence -= 1
        return self._reply(m.Missing, about, step=self.session.step + 1, missing="FORWARD")

    def forwarded(self, micro: int = 0) -> State:
        about = self.last(m.Forward, micro)
        return self._reply(m.Forwarded, about, step=about.step, micro=micro, **m.carried(VALUES))

    def gradient(self, micro: int = 0, *, skipped: bool = False) -> State:
        about = self.last(m.Backward if self.session.plan.has_tail else m.Forward, micro)
        carried = m.carried(Packed(()) if skipped else VALUES)
        return self._reply(
            m.Gradient, about, step=about.step, micro=micro, durable_step=0, skipped=skipped, **carried
        )

    def mean(self) -> State:
        about = self.last(m.Ready)
        record = {"round": 0, "record": DIGEST, "values": ()}
        return self._reply(m.Mean, about, step=about.step, durable_step=0, **record)

    def evaluated(self) -> State:
        about = self.last(m.Eval)
        return self._reply(m.Evaluated, about, step=about.step, **m.carried(VALUES))

    def closed(self) -> State:
        return self._reply(m.Closed, self.last(m.Close), step=self.session.step)

    # ways that many scripts begin with

    def begin(self) -> Walk:
        """Go to the state that an opened session begins in."""
        self.raised(), self.opened(), self.restored()
        return self

    def take_step(self) -> State:
        self.head(), self.forwarded(), self.tail(), self.gradient()
        return self.applied()


Script = Iterator[tuple[State, State]]
SCRIPTS: list[Callable[[Walk], Script]] = []
WALKS: dict[str, dict[str, Any]] = {}
"""The plan of each script, by its name."""


def script(**plan: Any) -> Callable[[Callable[[Walk], Script]], Callable[[Walk], Script]]:
    """Register a script: it yields the state that is there and the one that should be."""

    def register(function: Callable[[Walk], Script]) -> Callable[[Walk], Script]:
        SCRIPTS.append(function)
        WALKS[function.__name__] = plan
        return function

    return register


@script()
def a_training_of_two_steps(walk: Walk) -> Script:
    yield walk.raised(), S.OPENING
    yield walk.opened(), S.RESTORING
    yield walk.restored(), S.HEAD
    yield walk.head(), S.FORWARDING
    yield walk.forwarded(), S.TAIL
    yield walk.tail(), S.BACKWARDING
    yield walk.gradient(), S.APPLYING
    yield walk.applied(), S.HEAD
    yield walk.take_step(), S.SAVING
    yield walk.saved(), S.CLOSING
    yield walk.closed(), S.ENDED


@script(has_tail=False, total_steps=1)
def a_single_split(walk: Walk) -> Script:
    walk.begin()
    yield walk.head(), S.FORWARDING
    yield walk.gradient(), S.APPLYING
    yield walk.applied(), S.SAVING


@script(has_tail=False, micro_batches=2)
def a_gradient_that_comes_while_the_next_head_is_computed(walk: Walk) -> Script:
    walk.begin()
    yield walk.head(2), S.HEAD
    yield walk.gradient(0), S.HEAD
    yield walk.head(2), S.APPLYING
    yield walk.returned(), S.FORWARDING
    yield walk.gradient(1), S.APPLYING


@script(micro_batches=2)
def two_micro_batches_in_order(walk: Walk) -> Script:
    walk.begin()
    yield walk.head(2), S.HEAD
    yield walk.head(2), S.FORWARDING
    yield walk.forwarded(0), S.TAIL
    yield walk.tail(), S.FORWARDING
    yield walk.forwarded(1), S.TAIL
    yield walk.gradient(0), S.TAIL
    yield walk.tail(), S.APPLYING
    yield walk.returned(), S.BACKWARDING
    yield walk.gradient(1), S.APPLYING


@script(micro_batches=2)
def answers_that_all_come_early(walk: Walk) -> Script:
    walk.begin()
    walk.head(2)
    yield walk.forwarded(0), S.HEAD
    yield walk.head(2), S.TAIL
    yield walk.forwarded(1), S.TAIL
    yield walk.tail(), S.TAIL
    yield walk.tail(), S.BACKWARDING
    yield walk.gradient(1), S.BACKWARDING
    yield walk.gradient(0), S.APPLYING
    yield walk.returned(), S.APPLYING


@script(micro_batches=3)
def outputs_that_come_during_a_head_backward(walk: Walk) -> Script:
    walk.begin()
    walk.head(2, 6), walk.head(2, 6), walk.head(2, 6)
    walk.forwarded(0), walk.tail()
    yield walk.gradient(0), S.APPLYING
    yield walk.forwarded(1), S.APPLYING
    yield walk.returned(), S.TAIL
    yield walk.stop(), S.TAIL
    yield walk.tail(), S.SAVING


@script(micro_batches=2)
def outputs_that_come_after_a_head_backward(walk: Walk) -> Script:
    walk.begin()
    walk.head(2), walk.head(2), walk.forwarded(0), walk.tail()
    yield walk.gradient(0), S.APPLYING
    yield walk.returned(), S.FORWARDING


@script(micro_batches=2)
def opening_again_during_a_head_backward(walk: Walk) -> Script:
    walk.begin()
    walk.head(2), walk.head(2), walk.forwarded(0), walk.tail()
    yield walk.gradient(0), S.APPLYING
    yield walk.reopen(), S.APPLYING
    yield walk.returned(), S.SAVING
    yield walk.saved(), S.RAISING


@script()
def a_step_without_effect(walk: Walk) -> Script:
    walk.begin()
    walk.head(), walk.forwarded(), walk.tail()
    yield walk.gradient(skipped=True), S.APPLYING
    assert any(isinstance(each, e.Apply) and each.skipped for each in walk.actions)


@script(eval_every=1, eval_batches=2, total_steps=4, checkpoint_every=4)
def evaluations_of_two_batches(walk: Walk) -> Script:
    walk.begin()
    yield walk.take_step(), S.EVAL_HEAD
    yield walk.eval_head(), S.EVALUATING
    yield walk.evaluated(), S.EVAL_TAIL
    yield walk.eval_tail(more=True), S.EVAL_HEAD
    yield walk.eval_head(), S.EVALUATING
    yield walk.evaluated(), S.EVAL_TAIL
    yield walk.eval_tail(), S.HEAD
    walk.take_step(), walk.eval_head(), walk.evaluated()
    yield walk.hold(), S.EVAL_TAIL
    yield walk.eval_tail(), S.PAUSED
    yield walk.go(), S.HEAD
    walk.take_step(), walk.eval_head(), walk.evaluated()
    yield walk.stop(), S.EVAL_TAIL
    yield walk.eval_tail(more=True), S.ENDED


@script(stops_early=True, eval_every=1, eval_batches=1, total_steps=4, checkpoint_every=2)
def a_training_that_an_evaluation_ends(walk: Walk) -> Script:
    """Each evaluation comes before the checkpoint of its step, which has what was judged."""
    walk.begin()
    yield walk.take_step(), S.EVAL_HEAD
    walk.eval_head(), walk.evaluated()
    yield walk.eval_tail(), S.HEAD
    walk.take_step(), walk.eval_head(), walk.evaluated()
    yield walk.eval_tail(), S.SAVING
    yield walk.saved(), S.HEAD
    walk.take_step(), walk.eval_head(), walk.evaluated()
    yield walk.eval_tail(finished=True), S.SAVING
    yield walk.saved(), S.CLOSING
    yield walk.reopen(), S.SAVING
    yield walk.saved(), S.RAISING
    walk.step = 3
    walk.raised(), walk.opened()
    yield walk.tell(e.Restored((3,), evaluated=True, finished=True)), S.CLOSING


@script(stops_early=True, stored=1, eval_every=1, eval_batches=1, total_steps=4)
def a_resume_before_the_evaluation_was_judged(walk: Walk) -> Script:
    walk.raised(), walk.opened()
    yield walk.restored(), S.EVAL_HEAD
    yield walk.stop(), S.EVAL_HEAD
    yield walk.eval_head(), S.SAVING
    yield walk.saved(), S.ENDED


@script(stops_early=True, stored=1, eval_every=1, eval_batches=1, total_steps=4)
def a_resume_after_the_evaluation_was_judged(walk: Walk) -> Script:
    walk.raised(), walk.opened()
    yield walk.tell(e.Restored((1,), evaluated=True)), S.HEAD


@script(stops_early=True, eval_every=1, eval_batches=1, total_steps=3, checkpoint_every=9)
def a_training_that_ends_with_its_best_evaluation(walk: Walk) -> Script:
    """The best step's checkpoint is written, and the next FORWARD says so; the end goes back to it."""
    walk.begin()
    walk.take_step(), walk.eval_head(), walk.evaluated()
    yield walk.eval_tail(best=1), S.SAVING
    yield walk.saved(), S.HEAD
    assert walk.take_step() is S.EVAL_HEAD
    assert walk.last(m.Forward).best is True
    walk.eval_head(), walk.evaluated()
    yield walk.eval_tail(best=1), S.HEAD
    assert walk.take_step() is S.EVAL_HEAD
    assert walk.last(m.Forward).best is None
    walk.eval_head(), walk.evaluated()
    yield walk.eval_tail(best=1), S.SAVING
    yield walk.saved(), S.CLOSING
    yield walk.closed(), S.GOING_BACK
    assert walk.actions[-1] == e.GoBack(1)
    yield walk.tell(e.WentBack((1,))), S.RAISING
    walk.step = 1
    walk.raised(), walk.opened()
    assert walk.last(m.Open).held == (1,)
    yield walk.tell(e.Restored((1,), finished=True, best=1)), S.EVAL_HEAD
    walk.eval_head(), walk.evaluated()
    yield walk.eval_tail(finished=True, best=1), S.SAVING
    yield walk.saved(), S.CLOSING
    yield walk.closed(), S.ENDED


@script(stops_early=True, stored=2, eval_every=1, eval_batches=1)
def a_stop_while_it_goes_back_to_the_best(walk: Walk) -> Script:
    walk.raised(), walk.opened()
    yield walk.tell(e.Restored((2,), evaluated=True, best=1)), S.CLOSING
    yield walk.closed(), S.GOING_BACK
    yield walk.stop(), S.GOING_BACK
    yield walk.tell(e.WentBack((1,))), S.ENDED


@script(eval_batches=1, total_steps=1)
def an_evaluation_at_the_end(walk: Walk) -> Script:
    walk.begin()
    yield walk.take_step(), S.SAVING
    yield walk.saved(), S.EVAL_HEAD
    walk.eval_head(), walk.evaluated()
    yield walk.eval_tail(), S.CLOSING


@script(stored=2, eval_batches=1)
def a_resume_after_the_last_step_evaluates(walk: Walk) -> Script:
    walk.raised(), walk.opened()
    yield walk.restored(), S.EVAL_HEAD
    yield walk.stop(), S.EVAL_HEAD
    yield walk.eval_head(), S.SAVING
    yield walk.saved(), S.ENDED


@script(stored=2)
def a_resume_after_the_last_step_closes(walk: Walk) -> Script:
    walk.raised(), walk.opened()
    yield walk.restored(), S.CLOSING


@script(round_steps=1, total_steps=4, checkpoint_every=4, eval_every=1, eval_batches=1)
def rounds_of_a_fleet(walk: Walk) -> Script:
    walk.raised(), walk.opened()
    yield walk.restored(), S.HANDING_IN
    yield walk.handed_in(), S.ROUND_END
    yield walk.mean(), S.APPLYING
    yield walk.applied(), S.SAVING
    yield walk.saved(), S.HEAD
    yield walk.take_step(), S.HANDING_IN
    yield walk.handed_in(), S.ROUND_END
    yield walk.mean(), S.APPLYING
    yield walk.applied(), S.SAVING
    yield walk.saved(), S.EVAL_HEAD


@script(round_steps=1, total_steps=4, checkpoint_every=2)
def a_checkpoint_before_the_end_of_a_round(walk: Walk) -> Script:
    walk.begin(), walk.handed_in(), walk.mean(), walk.applied(), walk.saved()
    yield walk.take_step(), S.SAVING
    yield walk.saved(), S.HANDING_IN
    yield walk.stop(), S.HANDING_IN
    yield walk.handed_in(), S.SAVING


@script(round_steps=2, stored=1, total_steps=9)
def pausing_in_a_fleet(walk: Walk) -> Script:
    walk.begin(), walk.take_step(), walk.saved()
    yield walk.hold(), S.HEAD
    yield walk.take_step(), S.SAVING
    yield walk.saved(), S.PAUSED
    yield walk.go(), S.HANDING_IN
    yield walk.handed_in(), S.ROUND_END
    yield walk.stop(), S.SAVING


@script(round_steps=1, total_steps=4)
def opening_again_at_the_end_of_a_round(walk: Walk) -> Script:
    walk.begin()
    yield walk.handed_in(), S.ROUND_END
    yield walk.reopen(), S.SAVING


@script(round_steps=1, total_steps=4)
def the_store_went_back_at_the_end_of_a_round(walk: Walk) -> Script:
    walk.begin()
    yield walk.handed_in(), S.ROUND_END
    yield walk.doubted(), S.SAVING


@script(checkpoint_every=1)
def a_checkpoint_at_every_step(walk: Walk) -> Script:
    walk.begin()
    yield walk.take_step(), S.SAVING
    yield walk.saved(), S.HEAD


@script()
def a_hold_at_the_beginning(walk: Walk) -> Script:
    walk.raised(), walk.opened(), walk.hold()
    yield walk.restored(), S.PAUSED
    yield walk.stop(), S.SAVING
    yield walk.saved(), S.ENDED


@script(takeover=True)
def taking_over_from_a_newer_attempt(walk: Walk) -> Script:
    walk.raised()
    yield walk.superseded(), S.RAISING
    yield walk.raised(), S.OPENING


@script()
def another_agent_of_this_device(walk: Walk) -> Script:
    walk.raised()
    yield walk.superseded(), S.ENDED
    assert isinstance(walk.actions[0], e.Fail)
    assert isinstance(walk.actions[0].error, StateError)


@script()
def a_failure_for_good(walk: Walk) -> Script:
    walk.raised()
    yield walk.failed(), S.ENDED
    assert isinstance(walk.actions[0], e.Fail)
    assert isinstance(walk.actions[0].error, RemoteError)


@script()
def a_stop_while_the_attempt_is_raised(walk: Walk) -> Script:
    yield walk.stop(), S.ENDED


@script()
def a_stop_while_opening(walk: Walk) -> Script:
    walk.raised()
    yield walk.stop(), S.ENDED


@script()
def a_stop_while_restoring(walk: Walk) -> Script:
    walk.raised(), walk.opened()
    yield walk.stop(), S.ENDED


@script()
def a_stop_during_a_head(walk: Walk) -> Script:
    walk.begin()
    yield walk.stop(), S.HEAD
    yield walk.head(), S.SAVING
    yield walk.saved(), S.ENDED


@script()
def opening_again_after_a_stop_ends(walk: Walk) -> Script:
    """A stop is not forgotten because the worker asks for a new attempt: nothing is left to go on with."""
    walk.begin(), walk.head()
    yield walk.stop(), S.FORWARDING
    yield walk.reopen(), S.SAVING
    yield walk.saved(), S.ENDED


WAITS: dict[State, tuple[dict[str, Any], Callable[[Walk], object]]] = {
    S.FORWARDING: ({}, lambda walk: walk.begin().head()),
    S.BACKWARDING: ({}, lambda walk: (walk.begin().head(), walk.forwarded(), walk.tail())),
    S.EVALUATING: (
        {"eval_batches": 1, "total_steps": 1},
        lambda walk: (walk.begin().take_step(), walk.saved(), walk.eval_head()),
    ),
    S.CLOSING: ({"total_steps": 1}, lambda walk: (walk.begin().take_step(), walk.saved())),
}
"""The waits within a step and after the last one: the plan, and the way there."""
ENDS: dict[str, Callable[[Walk], object]] = {
    "opened again": lambda walk: walk.reopen(),
    "an older owner": lambda walk: walk.doubted(),
    "stopped offline": lambda walk: (walk.tell(e.LinkDown()), walk.stop()),
    "stopped in time": lambda walk: (walk.stop(), walk.timer(Timer.STOP)),
}


def walked(function: Callable[[Walk], Script]) -> Walk:
    walk = Walk(**WALKS[function.__name__])
    for found, expected in function(walk):
        assert found is expected, f"{found} where {expected} should be"
    return walk


def waited(state: State, end: str) -> Walk:
    plan, go = WAITS[state]
    walk = Walk(**plan)
    go(walk)
    assert walk.session.state is state
    ENDS[end](walk)
    return walk


@pytest.mark.parametrize("function", SCRIPTS, ids=lambda function: function.__name__)
def test_a_script_goes_through_its_states(function: Callable[[Walk], Script]) -> None:
    walked(function)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("state", WAITS, ids=lambda state: state.name)
def test_every_wait_can_be_left_with_a_checkpoint(state: State, end: str) -> None:
    assert waited(state, end).session.state is S.SAVING


def test_every_row_of_the_table_is_walked() -> None:
    walks = [walked(each) for each in SCRIPTS] + [waited(state, end) for state in WAITS for end in ENDS]
    done = {row for walk in walks for row in walk.rows}
    table = {
        (state, occasion, after)
        for state, row in [*TRANSITIONS.items(), (None, EVERYWHERE)]
        for occasion, states in row.items()
        for after in states
    }
    assert not table - done, sorted(str(row) for row in table - done)


def test_what_nobody_waits_for_changes_nothing() -> None:
    walk = Walk()
    walk.begin().head()
    for event in (e.Go(), e.Arriving(), e.Sent("1" * 16), e.NotSent("1" * 16), e.Fired(Timer.RETRY)):
        assert walk.tell(event) is S.FORWARDING


def test_a_way_that_is_not_in_the_table_is_refused() -> None:
    walk = Walk()
    walk.session.state = S.CLOSING
    with pytest.raises(AssertionError, match="HeadDone while closing"):
        walk.head()
