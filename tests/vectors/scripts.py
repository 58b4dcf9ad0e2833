"""Scripted lives of the device's machine: what the simulation's faults bring about seldom or never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from broker.protocol import messages as m
from device_agent.session import events as e
from device_agent.session.machine import DeviceSession
from device_agent.session.plan import SessionPlan
from spliteasy.codecs.packer import Packed

SESSION, DIGEST = "digits.phone-1", "ab" * 32
ATTEMPT = m.AttemptRef(number=1, nonce="00000000000000aa")
FENCE = 3


class Life:
    """A machine, and a worker that answers what it is told to."""

    def __init__(self, *, held: tuple[int, ...] = (0,), **settings: Any) -> None:
        plan = {"total_steps": 4, "checkpoint_every": 2, "eval_every": 0, "eval_batches": 0, "has_tail": True}
        self.session = DeviceSession(
            SessionPlan(session=SESSION, digest=DIGEST, **{**plan, **settings}), held=held
        )
        self.attempt = ATTEMPT
        self.last: dict[str, str] = {}
        """The id of the newest request of each kind."""
        self.session.start()

    def do(self, *happened: e.Event) -> list[e.Action]:
        """Hand over events; return what the last one brought about."""
        actions: list[e.Action] = []
        for event in happened:
            actions = self.session.handle(event)
            for action in actions:
                if isinstance(action, e.Send):
                    self.last[action.message.kind] = action.message.request
        return actions

    def begin(self, *, step: int = 0, number: int = 1, held: tuple[int, ...] = (0,)) -> None:
        """Come online, raise the attempt and open."""
        self.attempt = ATTEMPT.model_copy(update={"number": number})
        self.do(e.LinkUp(), e.AttemptRaised(self.attempt))
        self.answer(m.Opened, "OPEN", step=step, durable_step=0)
        self.do(e.Restored(held))

    def answer(self, reply: Any, to: str, **fields: Any) -> list[e.Action]:
        """A reply within the attempt to the newest request of that kind."""
        fields = {"fence": FENCE, **fields} if issubclass(reply, m.SessionReply) else fields
        attempt = {"attempt": self.attempt} if "attempt" in reply.model_fields else {}
        whole = {"session": SESSION, "answers": self.last[to], **attempt, **fields}
        return self.do(e.Received(reply(**whole)))

    def receipt(self, reply: Any, to: str, **fields: Any) -> list[e.Action]:
        """A word about the bytes of the newest request of that kind."""
        return self.do(e.Received(reply(answers=self.last[to], **fields)))

    def head(self, *, rows: Tensor | None = None, batch: int = 2, targets: tuple[Tensor, ...] = ()) -> None:
        values = rows if rows is not None else _rows(batch)
        self.do(e.HeadDone(Packed((values,)), len(values), targets, batch))
        self.sent("FORWARD")

    def sent(self, kind: str) -> None:
        """The broker has the newest request of that kind."""
        self.do(e.Sent(self.last[kind]))

    def forwarded(self, **fields: Any) -> None:
        self.answer(m.Forwarded, "FORWARD", step=self.session.step + 1, values=(_rows(2),), **fields)

    def tail(self) -> None:
        self.do(e.TailDone(Packed((_rows(2),)), 0.5))
        self.sent("BACKWARD")

    def gradient(self, *, to: str = "BACKWARD", **fields: Any) -> None:
        step = {"step": self.session.step + 1, "durable_step": 0, "values": (_rows(2),)}
        self.answer(m.Gradient, to, **{**step, **fields})

    def whole_step(self) -> None:
        self.head()
        self.forwarded()
        self.tail()
        self.gradient()
        self.do(e.Applied())

    def evaluate(self, *, finished: bool = False, best: int = 0) -> None:
        """An evaluation of one batch."""
        self.do(e.EvalHeadDone(Packed((_rows(2),)), 2))
        self.answer(m.Evaluated, "EVAL", step=self.session.step, **m.carried(Packed((_rows(2),))))
        self.do(e.EvalTailDone(False, finished, best))


def _rows(count: int) -> Tensor:
    return torch.arange(count * 3, dtype=torch.float32).reshape(count, 3) / 4


def stop_asked_in_every_state() -> None:
    """The user stops at another moment each time; the step ends, or is given up after a while."""
    prefixes: list[Callable[[Life], object]] = [
        lambda life: None,
        lambda life: life.do(e.LinkUp(), e.AttemptRaised(ATTEMPT)),
        lambda life: life.begin(),
        lambda life: (life.begin(), life.head()),
        lambda life: (life.begin(), life.head(), life.do(e.LinkDown())),
        lambda life: (life.begin(), life.head(), life.forwarded()),
        lambda life: (life.begin(), life.head(), life.forwarded(), life.tail()),
    ]
    for prefix in prefixes:
        life = Life()
        prefix(life)
        life.do(e.StopAsked(), e.Fired(e.Timer.STOP))
        life.do(e.Fired(e.Timer.REPLY), e.Fired(e.Timer.RETRY))
        if life.session.state.name == "HEAD":
            life.do(e.HeadDone(Packed((_rows(2),)), 2, (), 2))
        if life.session.state.name == "TAIL":
            life.do(e.TailDone(Packed((_rows(2),))))
        if life.session.state.name == "SAVING":
            life.do(e.Saved((0,)))
    life = Life()
    life.begin()
    life.head()
    life.do(e.StopAsked())
    life.forwarded()
    life.do(e.TailDone(Packed((_rows(2),))), e.Saved((0,)))


def reopened_while_stopping() -> None:
    """The worker wants a new attempt while the step has its grace, and the user stops in an evaluation."""
    life = Life()
    life.begin()
    life.head()
    life.do(e.StopAsked())
    life.answer(m.Reopen, "FORWARD", reason="the store went back")
    life.do(e.Saved((0,)))
    life = Life(eval_every=1, eval_batches=1)
    life.begin()
    life.whole_step()
    life.do(e.StopAsked(), e.EvalHeadDone(Packed((_rows(2),)), 2), e.Saved((0, 1)))


def back_to_the_best_evaluation() -> None:
    """The first of three evaluations is the best: the training ends there, once it can't be lost any more."""
    life = Life(eval_every=1, eval_batches=1, total_steps=3, checkpoint_every=9, stops_early=True)
    life.begin()
    for step in (1, 2, 3):
        life.whole_step()
        life.evaluate(best=1)
        if step != 2:
            life.do(e.Saved((0, step)))
    life.answer(m.Closed, "CLOSE", step=3)
    life.do(e.WentBack((1,)), e.AttemptRaised(ATTEMPT.model_copy(update={"number": 2})))
    life.attempt = ATTEMPT.model_copy(update={"number": 2})
    life.answer(m.Opened, "OPEN", step=1, durable_step=1)
    life.do(e.Restored((1,), finished=True, best=1))
    life.evaluate(finished=True, best=1)
    life.do(e.Saved((1,)))
    life.answer(m.Closed, "CLOSE", step=1)
    assert life.session.state.name == "ENDED"


def nobody_takes_the_request() -> None:
    """No queue takes OPEN, then FORWARD; each goes out again after a while."""
    life = Life()
    life.do(e.LinkUp(), e.AttemptRaised(ATTEMPT))
    life.do(e.NotSent(life.last["OPEN"]), e.Fired(e.Timer.RETRY))
    life.answer(m.Opened, "OPEN", step=0, durable_step=0)
    life.do(e.Restored((0,)), e.HeadDone(Packed((_rows(2),)), 2, (), 2))
    life.do(e.NotSent(life.last["FORWARD"]), e.Fired(e.Timer.RETRY))
    life.sent("FORWARD")
    life.forwarded()
    life.do(e.TailDone(Packed((_rows(2),))))


def a_worker_is_silent() -> None:
    """Nobody answers: the device asks, says once that nobody does, and goes on when the answer comes."""
    life = Life()
    life.begin()
    life.head()
    for _ in range(3):
        life.do(e.Fired(e.Timer.REPLY))
        life.sent("ASK")
        life.do(e.Arriving())
    life.answer(m.Working, "ASK", step=1)
    life.answer(m.Missing, "ASK", step=1, missing="FORWARD")
    life.answer(m.Missing, "ASK", step=1, missing="FORWARD")
    life.receipt(m.Have, "FORWARD", ranges=((0, 64), (128, 192)))
    for reason in (*(f"reason {n}" for n in range(10)), "reason 9"):
        life.receipt(m.Busy, "FORWARD", retry_after_s=0.01, reason=reason)
    life.forwarded()


def steps_that_pass_without_effect() -> None:
    """A gradient was not finite, with one micro-batch and with three, of which the second says so."""
    life = Life()
    life.begin()
    life.head()
    life.forwarded()
    life.tail()
    life.gradient(skipped=True, values=())
    life.do(e.Applied())
    life = Life(micro_batches=3)
    life.begin()
    for rows in (2, 1, 1):
        life.head(rows=_rows(rows), batch=4)
    first = [micro.forward.request for micro in life.session._open.micros]
    for micro, request in enumerate(first):
        life.last["FORWARD"] = request
        life.forwarded(micro=micro)
    life.tail()
    life.gradient(micro=0)
    life.tail()
    life.gradient(micro=1, skipped=True, values=())
    life.tail()
    life.do(e.Applied())


def a_later_life_asks_about_large_values() -> None:
    """A resumed device asks before it sends much, and says what the request consists of."""
    life = Life(held=(0, 2), ask_above_bytes=16)
    life.begin(step=2, number=2, held=(0, 2))
    life.do(e.HeadDone(Packed((_rows(2),)), 2, (), 2))
    life.sent("ASK")
    life.answer(m.Missing, "ASK", step=3, missing="FORWARD")
    life.sent("FORWARD")
    life.do(e.LinkDown(), e.LinkUp())
    life.answer(m.Missing, "ASK", step=3, missing="FORWARD")
    life.forwarded()
    life.do(e.TailDone(Packed((_rows(2),))))
    life.answer(m.Missing, "ASK", step=3, missing="BACKWARD")
    life.gradient()
    life.do(e.Applied())


def one_cut_with_shared_labels() -> None:
    """There is no tail: the worker computes the loss, and the labels' count goes with them."""
    life = Life(has_tail=False, total_steps=2)
    life.begin()
    labels = torch.tensor([1, 0])
    for _ in range(2):
        life.do(e.HeadDone(Packed((_rows(2),)), 2, (labels,), 2, 2.0))
        life.sent("FORWARD")
        life.gradient(to="FORWARD", loss=0.25)
        life.do(e.Applied())
        if life.session.state.name == "SAVING":
            life.do(e.Saved((0, life.session.step)))
    life.answer(m.Closed, "CLOSE", step=2)


def held_back_and_let_go() -> None:
    """A device may not go on for now; a step that has begun ends, and a checkpoint is written."""
    life = Life(eval_every=2, eval_batches=2)
    life.begin()
    life.do(e.Hold("the page is hidden"))
    life.whole_step()
    life.do(e.Saved((0, 1)), e.Hold("the battery is low"), e.Hold("the battery is low"), e.Go())
    life.whole_step()
    life.do(e.Saved((0, 1, 2)))
    for _ in range(2):
        life.do(e.EvalHeadDone(Packed((_rows(2),)), 2))
        life.sent("EVAL")
        life.answer(m.Evaluated, "EVAL", step=2, values=(_rows(2),))
        life.do(e.EvalTailDone(life.session._eval_index == 0))


def a_store_that_goes_back() -> None:
    """A reply of an older fence is a zombie's, and after an ASK the sign of a store that went back."""
    life = Life()
    life.begin()
    life.head()
    life.forwarded(fence=2)
    life.do(e.Fired(e.Timer.REPLY))
    life.forwarded(fence=2)
    life.do(e.Saved((0,)), e.AttemptRaised(ATTEMPT.model_copy(update={"number": 2})))


def another_agent_or_an_error() -> None:
    """The ends that are no good ones, with and without leave to take over."""
    for takeover in (False, True):
        life = Life(takeover=takeover)
        life.do(e.LinkUp(), e.AttemptRaised(ATTEMPT))
        life.answer(m.Superseded, "OPEN", newest=9)
        if takeover:
            life.attempt = ATTEMPT.model_copy(update={"number": 10})
            life.do(e.AttemptRaised(life.attempt))
            life.answer(m.Opened, "OPEN", step=0, durable_step=0, newest="cd" * 32)
    for code, retriable in (("no-common-step", False), ("not-allowed", False), ("unavailable", True)):
        life = Life()
        life.do(e.LinkUp(), e.AttemptRaised(ATTEMPT))
        life.answer(m.Error, "OPEN", code=code, message="so it is", hint="do this", retriable=retriable)


def rounds_of_a_fleet() -> None:
    """Two rounds of a step each: what is handed in is asked for again, and the mean is taken over."""
    life = Life(round_steps=1, total_steps=5, checkpoint_every=10)
    life.begin()
    for number in range(3):
        ends = {"head/0.weight": _rows(2)} if number else {}
        life.do(e.HandInDone(number, ends, None, 4 * number, "ab" * 8 if number == 2 else None))
        life.sent("READY")
        life.do(e.Fired(e.Timer.REPLY))
        life.sent("ASK")
        life.answer(m.Missing, "ASK", step=life.session.step + 1, missing="READY")
        about = {"step": life.session.step + 1, "durable_step": number, "round": number, "record": "ef" * 32}
        life.answer(m.Mean, "READY", **about, names=tuple(ends), values=tuple(ends.values()), drawn=2)
        life.do(e.Applied())
        life.do(e.Saved((0, 2 * number + 1)))
        if number < 2:
            life.whole_step()
    life.answer(m.Closed, "CLOSE", step=5)
    life = Life(round_steps=1, total_steps=5)
    life.begin()
    life.do(e.StopAsked(), e.HandInDone(0, {}, None), e.Saved((0,)))


SCRIPTS: tuple[Callable[[], None], ...] = (
    stop_asked_in_every_state,
    reopened_while_stopping,
    nobody_takes_the_request,
    a_worker_is_silent,
    steps_that_pass_without_effect,
    a_later_life_asks_about_large_values,
    one_cut_with_shared_labels,
    held_back_and_let_go,
    a_store_that_goes_back,
    another_agent_or_an_error,
    rounds_of_a_fleet,
    back_to_the_best_evaluation,
)
