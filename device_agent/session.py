"""A device's session: the protocol as a state machine, without I/O (DESIGN: device agent).

`DeviceSession.handle` takes one event and returns actions. Per step:

    HEAD ─▶ FORWARDING ─▶ TAIL ─▶ BACKWARDING ─▶ APPLYING ─▶ SAVING ─▶ EVAL… ─▶ HEAD of the next
    (single split, and so no tail: FORWARDING ─▶ APPLYING)

Where the device may not go on for now (`Hold`), the next HEAD waits in PAUSED, with a checkpoint on disk.

The device keeps FORWARD and BACKWARD of a step until its GRADIENT arrives. After a reconnect or a
deadline it asks what became of them (ASK) instead of sending tensors again, and sends what is MISSING.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from broker import messages as m
from broker.chunks import in_ranges
from device_agent import events as e
from device_agent.events import Action, Event, Timer
from spliteasy.errors import RemoteError, SplitEasyError, StateError


class State(Enum):
    """What the session is at. Each has one event that ends it; see `_EDGES`."""

    RAISING = "raising the attempt"
    OPENING = "opening"
    RESTORING = "restoring"
    PAUSED = "paused"
    HEAD = "computing the head"
    FORWARDING = "waiting for the body's outputs"
    TAIL = "computing the tail"
    BACKWARDING = "waiting for the gradient"
    APPLYING = "taking the step"
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
    _S.RESTORING: frozenset({_S.HEAD, _S.PAUSED, _S.EVAL_HEAD, _S.CLOSING}),
    _S.PAUSED: frozenset({_S.HEAD, _S.SAVING}),
    _S.HEAD: frozenset({_S.FORWARDING, _S.SAVING}),
    _S.FORWARDING: frozenset({_S.TAIL, _S.APPLYING, _S.SAVING}),
    _S.TAIL: frozenset({_S.BACKWARDING, _S.SAVING}),
    _S.BACKWARDING: frozenset({_S.APPLYING, _S.SAVING}),
    _S.APPLYING: frozenset({_S.SAVING, _S.EVAL_HEAD, _S.CLOSING, _S.HEAD}),
    _S.SAVING: frozenset({_S.RAISING, _S.EVAL_HEAD, _S.CLOSING, _S.HEAD, _S.PAUSED}),
    _S.EVAL_HEAD: frozenset({_S.EVALUATING}),
    _S.EVALUATING: frozenset({_S.EVAL_TAIL, _S.SAVING}),
    _S.EVAL_TAIL: frozenset({_S.EVAL_HEAD, _S.CLOSING, _S.HEAD, _S.PAUSED}),
    _S.CLOSING: frozenset({_S.SAVING}),
    _S.ENDED: frozenset(),
}
_WAITING = frozenset({_S.OPENING, _S.FORWARDING, _S.BACKWARDING, _S.EVALUATING, _S.CLOSING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the device is to do, from its job and data."""

    session: str
    digest: str
    total_steps: int
    checkpoint_every: int
    eval_every: int
    """Steps between evaluations; 0: only at the end."""
    eval_batches: int
    """Batches of one evaluation; 0: no test data."""
    has_tail: bool
    takeover: bool = False
    """Go on even if the store knows a newer attempt of this device."""
    restart: bool = False
    """Begin at step 0, whatever the store has."""
    reply_timeout_s: float = 10.0
    stop_grace_s: float = 3.0
    retry_s: float = 1.0


class DeviceSession:
    """The protocol of one device's training. `step` is the last step that this device has applied."""

    def __init__(self, plan: Plan, *, held: tuple[int, ...]) -> None:
        self.plan = plan
        self.state = State.RAISING
        self.step = 0
        self.held = held
        self.durable_step = 0
        self._attempt: m.AttemptRef | None = None
        self._fence = 0
        self._online = False
        self._stopping = False
        self._hold: str | None = None
        """Why no step may begin now."""
        self._reopening = False
        self._checkpoint_asked = False
        self._forward: m.Forward | None = None
        self._pending: m.AnyRequest | None = None
        """The request that an answer is awaited to."""
        self._asks: set[str] = set()
        self._reached_broker = False
        """Whether the pending request may have arrived, so that ASK comes before sending it again."""
        self._nudged = False
        """Whether the pending request was asked about, or sent again."""
        self._eval_index = 0
        self._notes_silence = 0
        self._takeover, self._restart = plan.takeover, plan.restart

    def start(self) -> list[Action]:
        """The first actions."""
        return [e.RaiseAttempt()]

    def handle(self, event: Event) -> list[Action]:
        """Take one event. An event that nobody waits for any more changes nothing."""
        if self.state is State.ENDED:
            return []
        match event:
            case e.LinkUp():
                self._online = True
                return self._nudge() if self.state in _WAITING else []
            case e.LinkDown():
                self._online = False
                return [e.Disarm(Timer.REPLY), e.Disarm(Timer.RETRY)]
            case e.Sent():
                return [e.Arm(Timer.REPLY, self.plan.reply_timeout_s)] if self.state in _WAITING else []
            case e.NotSent():
                self._reached_broker = False
                return self._retry_later(self.plan.retry_s, "waiting for a worker to serve this broker")
            case e.Fired(timer=Timer.STOP):
                return self._stop_now() if self.state in _WAITING else []
            case e.Fired(timer=Timer.REPLY):
                return self._no_reply()
            case e.Fired(timer=Timer.RETRY):
                return self._nudge() if self.state in _WAITING else []
            case e.StopAsked():
                return self._stop()
            case e.Hold(why=why):
                changed, self._hold = why != self._hold, why
                return [e.Note(f"paused: {why}")] if changed and self.state is State.PAUSED else []
            case e.Go():
                self._hold = None
                return self._begin_step() if self.state is State.PAUSED else []
            case e.Received(message=message):
                return self._received(message)
            case _:
                return self._computed(event)

    # computations that ended

    def _computed(self, event: Event) -> list[Action]:
        match self.state, event:
            case State.RAISING, e.AttemptRaised(attempt=attempt):
                self._attempt, self._fence = attempt, 0
                return self._request(
                    State.OPENING,
                    m.Open(
                        session=self.plan.session,
                        attempt=attempt,
                        digest=self.plan.digest,
                        held=self.held[-m.MAX_HELD_STEPS :],
                        restart=self._restart,
                    ),
                )
            case State.RESTORING, e.Restored(held=held):
                self.held = held
                return self._next(saved=True)
            case (State.HEAD, e.HeadDone()) | (State.TAIL, e.TailDone()) if self._stopping:
                return self._stop_now()
            case State.HEAD, e.HeadDone(values=values, samples=samples, targets=targets):
                self._forward = m.Forward(
                    session=self.plan.session,
                    attempt=self._live(),
                    step=self.step + 1,
                    samples=samples,
                    targets=len(targets),
                    **m.carried(values, *targets),
                    oldest_checkpoint=min(self.held),
                )
                return self._request(State.FORWARDING, self._forward)
            case State.TAIL, e.TailDone(gradients=gradients):
                assert self._forward is not None
                backward = m.Backward(
                    session=self.plan.session,
                    attempt=self._live(),
                    step=self.step + 1,
                    forward=self._forward.request,
                    **m.carried(gradients),
                )
                return self._request(State.BACKWARDING, backward)
            case State.APPLYING, e.Applied():
                self.step += 1
                self._forward = None
                return self._next(saved=False)
            case State.SAVING, e.Saved(held=held):
                self.held = held
                self._checkpoint_asked = False
                return self._after_saving()
            case State.EVAL_HEAD, e.EvalHeadDone(values=values, samples=samples):
                request = m.Eval(
                    session=self.plan.session,
                    attempt=self._live(),
                    step=self.step,
                    samples=samples,
                    **m.carried(values),
                )
                return self._request(State.EVALUATING, request)
            case State.EVAL_TAIL, e.EvalTailDone(more=more):
                if more and not self._stopping:
                    self._eval_index += 1
                    self._move(State.EVAL_HEAD)
                    return [e.EvalHead(self._eval_index)]
                return self._next(saved=True, evaluated=True)
        raise AssertionError(f"{type(event).__name__} while {self.state.value}")

    def _next(self, *, saved: bool, evaluated: bool = False) -> list[Action]:
        """What follows when the device's own state is that of `step`, whole."""
        plan, step = self.plan, self.step
        last = step >= plan.total_steps
        leaving = last or self._stopping or self._hold is not None
        if not saved and (step % plan.checkpoint_every == 0 or leaving or self._checkpoint_asked):
            return self._save()
        if self._stopping and not last:
            return self._end(done=False)
        due = last or (plan.eval_every and step % plan.eval_every == 0 and step > 0)
        if due and plan.eval_batches and not evaluated and not self._just_restored():
            self._eval_index = 0
            self._move(State.EVAL_HEAD)
            return [e.EvalHead(0)]
        if last:
            return self._request(
                State.CLOSING, m.Close(session=plan.session, attempt=self._live(), step=step)
            )
        return self._begin_step()

    def _begin_step(self) -> list[Action]:
        if self._hold is not None:
            self._move(State.PAUSED)
            return [e.Note(f"paused: {self._hold}")]
        resumed = [e.Note("going on")] if self.state is State.PAUSED else []
        self._move(State.HEAD)
        return [*resumed, e.RunHead(self.step + 1)]

    def _just_restored(self) -> bool:
        """A resume in mid-training does not evaluate again; one after the last step does."""
        return self.state is State.RESTORING and self.step < self.plan.total_steps

    def _after_saving(self) -> list[Action]:
        if self._reopening:
            self._reopening = False
            self._move(State.RAISING)
            return [e.RaiseAttempt(above=self._live().number)]
        if self._stopping:
            return self._end(done=False)
        return self._next(saved=True)

    # messages

    def _received(self, message: m.AnyMessage) -> list[Action]:
        if self._is_from_an_older_owner(message):
            return self._doubt_the_store()
        if not self._is_ours(message):
            return []
        match message:
            case m.Opened() if self.state is State.OPENING:
                self.step = message.step
                self.durable_step = message.durable_step
                self._takeover = self._restart = False
                self._move(State.RESTORING)
                return [*self._answered(), e.Restore(message.step)]
            case m.Forwarded() if self._is_step(message.step) and self.state is State.FORWARDING:
                self._move(State.TAIL)
                return [*self._answered(), e.RunTail(m.packed_in(message))]
            case m.Forwarded() if self._is_step(message.step) and self.state is State.BACKWARDING:
                return self._send_pending()  # the forward was missing, and is there again
            case m.Gradient() if self._is_step(message.step) and self.state in self._awaiting_gradient():
                self.durable_step = max(self.durable_step, message.durable_step)
                self._checkpoint_asked = self._checkpoint_asked or message.checkpoint
                self._move(State.APPLYING)
                return [*self._answered(), e.Apply(m.packed_in(message), message.loss, message.skipped)]
            case m.Missing() if self._is_step(message.step):
                return self._missing(message)
            case m.Working():
                return [e.Arm(Timer.REPLY, self.plan.reply_timeout_s)] if self.state in _WAITING else []
            case m.Evaluated() if self.state is State.EVALUATING and message.step == self.step:
                self._move(State.EVAL_TAIL)
                return [*self._answered(), e.EvalTail(self._eval_index, self.step, m.packed_in(message))]
            case m.Closed() if self.state is State.CLOSING:
                return [*self._answered(), *self._end(done=True)]
            case m.Have() if self.state in _WAITING:
                return self._send_rest(message)
            case m.Busy() if self.state in _WAITING:
                return self._retry_later(message.retry_after_s, message.reason)
            case m.Reopen() if self.state in _WAITING and self.state is not State.OPENING:
                return [e.Note(f"opening anew: {message.reason}"), *self._answered(), *self._reopen()]
            case m.Superseded():
                return self._superseded(message)
            case m.Error():
                return self._error(message)
        return []

    def _is_ours(self, message: m.AnyMessage) -> bool:
        """Whether a message is a reply to this attempt, and to what it has sent."""
        known = {request.request for request in (self._pending, self._forward) if request is not None}
        if isinstance(message, m.Receipt):
            return message.answers in known | self._asks
        if not isinstance(message, m.Reply) or message.session != self.plan.session:
            return False
        if isinstance(message, m.SessionReply):
            if message.attempt != self._attempt:
                return False
            self._fence = message.fence
        elif isinstance(message, m.Superseded | m.Reopen | m.Working):
            return message.attempt == self._attempt
        return isinstance(message, m.SessionReply) or message.answers in known | self._asks

    def _is_from_an_older_owner(self, message: m.AnyMessage) -> bool:
        return (
            isinstance(message, m.SessionReply)
            and message.session == self.plan.session
            and message.attempt == self._attempt
            and message.fence < self._fence
        )

    def _doubt_the_store(self) -> list[Action]:
        """A reply of an older owner: a zombie's, to be ignored; unless it answers what was asked anew.

        Then the store has gone back and counts fences anew. A new attempt begins from what both have.
        """
        if not self._nudged or self.state is State.OPENING or self.state not in _WAITING:
            return []
        return [e.Note("opening anew: the store went back"), *self._answered(), *self._reopen()]

    def _is_step(self, step: int) -> bool:
        return step == self.step + 1

    def _awaiting_gradient(self) -> frozenset[State]:
        """With a tail only BACKWARD brings a GRADIENT; without one, FORWARD does."""
        return frozenset({State.BACKWARDING if self.plan.has_tail else State.FORWARDING})

    def _missing(self, message: m.Missing) -> list[Action]:
        if self.state not in (State.FORWARDING, State.BACKWARDING):
            return []
        assert self._forward is not None
        if message.missing == "FORWARD":
            return [e.Disarm(Timer.REPLY), e.Send(self._forward)]
        return self._send_pending() if self.state is State.BACKWARDING else []

    def _send_rest(self, message: m.Have) -> list[Action]:
        """Send what the worker lacks of the request."""
        for request in (self._pending, self._forward):
            if request is not None and request.request == message.answers:
                return [e.Disarm(Timer.REPLY), e.Send(request, in_ranges(message.frames))]
        return []

    def _superseded(self, message: m.Superseded) -> list[Action]:
        if self.state is State.OPENING and (self._takeover or self._restart):
            self._move(State.RAISING)
            return [*self._answered(), e.RaiseAttempt(above=message.newest)]
        return self._fail(
            StateError(
                f"the store knows attempt {message.newest} of {self.plan.session}, newer than this one",
                hint="another agent runs as this device, or this state folder is an old or a new one: stop "
                "the other agent, go on from this folder with --takeover, or begin anew with --restart",
            )
        )

    def _error(self, message: m.Error) -> list[Action]:
        if self.state not in _WAITING:
            return []
        if message.retriable:
            return self._retry_later(self.plan.retry_s, message.message)
        if message.code in ("no-common-step", "other-job"):
            return self._fail(StateError(message.message, hint=message.hint))
        return self._fail(RemoteError(message.message, code=message.code, hint=message.hint))

    # sending

    def _request(self, state: State, request: m.AnyRequest) -> list[Action]:
        """Go to `state` and wait there for the answer to `request`."""
        self._move(state)
        self._pending = request
        self._reached_broker = False
        self._nudged = False
        return self._send_pending()

    def _send_pending(self) -> list[Action]:
        assert self._pending is not None
        if not self._online:
            return []
        self._reached_broker = True
        return [e.Disarm(Timer.REPLY), e.Send(self._pending)]

    def _nudge(self) -> list[Action]:
        """Find out what became of the pending request: ASK where tensors may be there already."""
        pending = self._pending
        if not self._online or pending is None:
            return []
        self._nudged = True
        if isinstance(pending, m.Forward | m.Backward) and self._reached_broker:
            assert self._forward is not None
            ask = m.Ask(
                session=self.plan.session,
                attempt=self._live(),
                step=pending.step,
                about=pending.request,
                about_kind=pending.kind,
                forward=self._forward.request,
            )
            self._asks.add(ask.request)
            return [e.Send(ask)]
        return self._send_pending()

    def _no_reply(self) -> list[Action]:
        if self.state not in _WAITING:
            return []
        self._notes_silence += 1
        note = [e.Note("no answer yet: is a worker running?")] if self._notes_silence == 2 else []
        return [*note, *self._nudge()]

    def _answered(self) -> list[Action]:
        self._pending = None
        self._asks.clear()
        self._notes_silence = 0
        return [e.Disarm(Timer.REPLY), e.Disarm(Timer.RETRY)]

    def _retry_later(self, delay_s: float, why: str) -> list[Action]:
        return [e.Note(why), e.Disarm(Timer.REPLY), e.Arm(Timer.RETRY, delay_s)]

    # going back and stopping

    def _save(self) -> list[Action]:
        self._move(State.SAVING)
        return [e.Save(self.step, self.durable_step)]

    def _reopen(self) -> list[Action]:
        """Keep what this side has (the state after `step`), then begin a new attempt from there."""
        self._forward = None
        self._reopening = True
        return self._save()

    def _stop(self) -> list[Action]:
        self._stopping = True
        if self.state in (State.OPENING, State.RAISING, State.RESTORING):
            return self._end(done=False)
        if self.state in (State.FORWARDING, State.BACKWARDING) and self._online:
            return [e.Arm(Timer.STOP, self.plan.stop_grace_s)]
        return self._stop_now() if self.state in _WAITING | {State.PAUSED} else []

    def _stop_now(self) -> list[Action]:
        """Leave with a checkpoint of the last whole step; an unfinished one is forgotten."""
        self._forward = None
        return [*self._answered(), *self._save()]

    def _end(self, *, done: bool) -> list[Action]:
        self.state = State.ENDED
        return [e.Finish(done)]

    def _fail(self, error: SplitEasyError) -> list[Action]:
        self.state = State.ENDED
        return [e.Fail(error)]

    def _live(self) -> m.AttemptRef:
        assert self._attempt is not None
        return self._attempt

    def _move(self, to: State) -> None:
        if to not in _EDGES[self.state]:
            raise AssertionError(f"no way from {self.state} to {to}")
        self.state = to
