"""A device's session: the protocol as a state machine, without I/O (DESIGN: device agent).

`DeviceSession.handle` takes one event and returns actions. Per step:

    HEAD ─▶ FORWARDING ─▶ TAIL ─▶ BACKWARDING ─▶ APPLYING ─▶ SAVING ─▶ EVAL… ─▶ HEAD of the next
    (single split, and so no tail: FORWARDING ─▶ APPLYING)

Where the device may not go on for now (`Hold`), the next HEAD waits in PAUSED, with a checkpoint on disk.

A batch in micro-batches goes through the same states, each computation once for every micro-batch, in
order, as soon as its input is there (`_go_on`): requests of several are on the way meanwhile.

The device keeps all FORWARDs and BACKWARDs of a step until its last GRADIENT arrives. After a reconnect or
a deadline it asks what became of them (ASK) instead of sending tensors again, and sends what is MISSING.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from broker import messages as m
from broker.chunks import in_ranges
from device_agent import events as e
from device_agent.events import Action, Event, Timer
from spliteasy.errors import RemoteError, SplitEasyError, StateError
from spliteasy.micro_batches import micro_sizes
from spliteasy.packing import Packed


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
    _S.HEAD: frozenset({_S.HEAD, _S.FORWARDING, _S.TAIL, _S.APPLYING, _S.SAVING}),
    _S.FORWARDING: frozenset({_S.TAIL, _S.APPLYING, _S.SAVING}),
    _S.TAIL: frozenset({_S.TAIL, _S.FORWARDING, _S.BACKWARDING, _S.APPLYING, _S.SAVING}),
    _S.BACKWARDING: frozenset({_S.APPLYING, _S.SAVING}),
    _S.APPLYING: frozenset(
        {
            *(_S.APPLYING, _S.TAIL, _S.FORWARDING, _S.BACKWARDING),  # of another micro-batch
            *(_S.SAVING, _S.EVAL_HEAD, _S.CLOSING, _S.HEAD),
        }
    ),
    _S.SAVING: frozenset({_S.RAISING, _S.EVAL_HEAD, _S.CLOSING, _S.HEAD, _S.PAUSED}),
    _S.EVAL_HEAD: frozenset({_S.EVALUATING}),
    _S.EVALUATING: frozenset({_S.EVAL_TAIL, _S.SAVING}),
    _S.EVAL_TAIL: frozenset({_S.EVAL_HEAD, _S.CLOSING, _S.HEAD, _S.PAUSED}),
    _S.CLOSING: frozenset({_S.SAVING}),
    _S.ENDED: frozenset(),
}
_WAITING = frozenset({_S.OPENING, _S.FORWARDING, _S.BACKWARDING, _S.EVALUATING, _S.CLOSING})
_COMPUTING = frozenset({_S.HEAD, _S.TAIL, _S.APPLYING})
"""Of a step: requests of its other micro-batches may be on the way meanwhile."""


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
    micro_batches: int = 1
    takeover: bool = False
    """Go on even if the store knows a newer attempt of this device."""
    restart: bool = False
    """Begin at step 0, whatever the store has."""
    reply_timeout_s: float = 10.0
    stop_grace_s: float = 3.0
    retry_s: float = 1.0
    ask_above_bytes: int = 1 << 20
    """Where an agent before this one may have begun the step, requests with more bytes are asked about before
    they are sent: the worker may have a part."""
    agent: str | None = None
    """This agent's version."""


@dataclass(slots=True)
class _Micro:
    """A micro-batch of the step under way: its requests, and the answers that wait to be used."""

    forward: m.Forward
    outputs: Packed | None = None
    backward: m.Backward | None = None
    gradient: m.Gradient | None = None


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
        self._micros: list[_Micro] = []
        """Of the step under way, those whose head was computed."""
        self._count = 0
        """How many there will be."""
        self._returned = 0
        """Of how many the head backward has run."""
        self._pending: dict[str, m.AnyRequest] = {}
        """The requests that an answer is awaited to, by id."""
        self._sending: set[str] = set()
        """What the link was given and has not sent yet."""
        self._reached: dict[str, int] = {}
        """Requests that may have arrived, so that ASK comes before sending them again; and the fence of the
        newest owner that they can have reached."""
        self._asks: set[str] = set()
        self._nudged = False
        """Whether a pending request was asked about, or sent again."""
        self._begun_before = False
        """Whether an agent before this one may have sent requests of the step under way."""
        self._eval_index = 0
        self._notes_silence = 0
        self._waits_for: str | None = None
        """Why the pending request is sent again later."""
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
                return self._nudge()
            case e.LinkDown():
                self._online = False
                self._sending.clear()
                return [e.Disarm(Timer.REPLY), e.Disarm(Timer.RETRY)]
            case e.Sent(request=request):
                self._sending.discard(request)
                return self._await_reply()
            case e.NotSent(request=request):
                self._sending.discard(request)
                self._reached.pop(request, None)
                return self._retry_later(self.plan.retry_s, "waiting for a worker to serve this broker")
            case e.Fired(timer=Timer.STOP):
                return self._stop_now() if self.state in _WAITING else []
            case e.Fired(timer=Timer.REPLY):
                return self._no_reply()
            case e.Fired(timer=Timer.RETRY):
                return self._nudge()
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
                        agent=self.plan.agent,
                        total_steps=self.plan.total_steps,
                        restart=self._restart,
                    ),
                )
            case State.RESTORING, e.Restored(held=held):
                self.held = held
                return self._next(saved=True)
            case (
                (State.HEAD, e.HeadDone())
                | (State.TAIL, e.TailDone())
                | (State.APPLYING, e.HeadBackwardDone())
            ) if self._stopping or self._reopening:
                return self._stop_now()
            case State.HEAD, e.HeadDone(values=values, samples=samples, targets=targets, batch=batch):
                self._count = len(micro_sizes(batch, self.plan.micro_batches))
                forward = m.Forward(
                    session=self.plan.session,
                    attempt=self._live(),
                    step=self.step + 1,
                    micro=len(self._micros),
                    samples=samples,
                    batch=batch if self._count > 1 else None,
                    targets=len(targets),
                    **m.carried(values, *targets),
                    oldest_checkpoint=min(self.held),
                )
                self._micros.append(_Micro(forward))
                return [*self._submit(forward), *self._go_on()]
            case State.TAIL, e.TailDone(gradients=gradients, loss=loss):
                micro = self._next_tail()
                assert micro is not None
                self._micros[micro].backward = backward = m.Backward(
                    session=self.plan.session,
                    attempt=self._live(),
                    step=self.step + 1,
                    micro=micro,
                    forward=self._micros[micro].forward.request,
                    loss=loss,
                    **m.carried(gradients),
                )
                return [*self._submit(backward), *self._go_on()]
            case State.APPLYING, e.HeadBackwardDone():
                self._returned += 1
                return self._go_on()
            case State.APPLYING, e.Applied():
                self.step += 1
                self._begun_before = False
                self._forget_step()
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
        return [*resumed, *self._go_on()]

    def _go_on(self) -> list[Action]:
        """Begin the step's next computation, or wait for what it needs.

        Heads come first, so that the link and the worker have work as early as can be.
        """
        micros, step = self._micros, self.step + 1
        if any(micro.gradient is not None and micro.gradient.skipped for micro in micros):
            self._move(State.APPLYING)
            return [*self._all_answered(), e.Apply(Packed(()), None, skipped=True)]
        if not micros or len(micros) < self._count:
            self._move(State.HEAD)
            return [e.RunHead(step, len(micros))]
        tail = self._next_tail()
        if tail is not None and (outputs := micros[tail].outputs) is not None:
            micros[tail].outputs = None
            self._move(State.TAIL)
            return [e.RunTail(outputs, tail)]
        gradient, micros[self._returned].gradient = micros[self._returned].gradient, None
        if gradient is not None:
            self._move(State.APPLYING)
            last = self._returned == self._count - 1
            backward = e.Apply if last else e.RunHeadBackward
            return [backward(m.packed_in(gradient), gradient.loss)]
        waiting = State.BACKWARDING if self.plan.has_tail and tail is None else State.FORWARDING
        if self.state is not waiting:
            self._move(waiting)
        return []

    def _next_tail(self) -> int | None:
        """The first micro-batch whose tail has not run; None: all have, or there is no tail."""
        if not self.plan.has_tail:
            return None
        return next((n for n, micro in enumerate(self._micros) if micro.backward is None), None)

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
        return [*self._taken(message), *self._ask_a_new_owner(message)]

    def _taken(self, message: m.AnyMessage) -> list[Action]:
        match message:
            case m.Opened() if self.state is State.OPENING:
                self.step = message.step
                self.durable_step = message.durable_step
                self._takeover = self._restart = False
                self._begun_before = message.attempt.number > 1
                self._move(State.RESTORING)
                return [*self._all_answered(), e.Restore(message.step)]
            case m.Forwarded() if (micro := self._pending_micro(message)) is not None:
                micro.outputs = m.packed_in(message)
                return self._arrived(message)
            case m.Gradient() if (micro := self._pending_micro(message)) is not None:
                self.durable_step = max(self.durable_step, message.durable_step)
                self._checkpoint_asked = self._checkpoint_asked or message.checkpoint
                micro.gradient = message
                return self._arrived(message)
            case m.Missing() if message.step == self.step + 1:
                return self._missing(message)
            case m.Working():
                return self._await_reply()
            case m.Evaluated() if self.state is State.EVALUATING and message.step == self.step:
                self._move(State.EVAL_TAIL)
                return [*self._all_answered(), e.EvalTail(self._eval_index, self.step, m.packed_in(message))]
            case m.Closed() if self.state is State.CLOSING:
                return [*self._all_answered(), *self._end(done=True)]
            case m.Have() if self._pending:
                return self._send_rest(message)
            case m.Busy() if self._pending:
                return self._retry_later(message.retry_after_s, message.reason)
            case m.Reopen() if self._pending and self.state is not State.OPENING:
                return [e.Note(f"opening anew: {message.reason}"), *self._reopen()]
            case m.Superseded():
                return self._superseded(message)
            case m.Error():
                return self._error(message)
        return []

    def _is_ours(self, message: m.AnyMessage) -> bool:
        """Whether a message is a reply to this attempt, and to what it has sent."""
        known = {request.request for request in self._kept()}
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
        if not self._nudged or self.state is State.OPENING or not self._pending:
            return []
        return [e.Note("opening anew: the store went back"), *self._reopen()]

    def _pending_micro(self, message: m.Forwarded | m.Gradient) -> _Micro | None:
        """The micro-batch that waits for this. With a tail only BACKWARD brings a GRADIENT."""
        for micro in self._micros:
            from_tail = isinstance(message, m.Gradient) and self.plan.has_tail
            request = micro.backward if from_tail else micro.forward
            if request is not None and request.request == message.answers:
                return micro if message.answers in self._pending else None
        return None

    def _arrived(self, message: m.Forwarded | m.Gradient) -> list[Action]:
        """What a computation needs has come: it begins now, or after the one under way."""
        answered = self._answered(message.answers)
        return answered if self.state in _COMPUTING else [*answered, *self._go_on()]

    def _kept(self) -> list[m.AnyRequest]:
        """The requests that are pending or can be sent again."""
        kept = {micro.forward.request: micro.forward for micro in self._micros}
        kept_back = {micro.backward.request: micro.backward for micro in self._micros if micro.backward}
        return list({**kept, **kept_back, **self._pending}.values())

    def _missing(self, message: m.Missing) -> list[Action]:
        """Send what the worker lacks, unless it is on its way."""
        micro = message.micro or 0
        if micro >= len(self._micros):
            return []
        if message.answers in self._reached:
            self._reached[message.answers] = message.fence
        found = self._micros[micro]
        request = found.forward if message.missing == "FORWARD" else found.backward
        return self._send(request) if request is not None and request.request not in self._sending else []

    def _send_rest(self, message: m.Have) -> list[Action]:
        """Send what the worker lacks of the request."""
        for request in self._kept():
            if request.request == message.answers:
                return self._send(request, in_ranges(message.frames))
        return []

    def _superseded(self, message: m.Superseded) -> list[Action]:
        if self.state is State.OPENING and (self._takeover or self._restart):
            self._move(State.RAISING)
            return [*self._all_answered(), e.RaiseAttempt(above=message.newest)]
        return self._fail(
            StateError(
                f"the store knows attempt {message.newest} of {self.plan.session}, newer than this one",
                hint="another agent runs as this device, or this state folder is an old or a new one: stop "
                "the other agent, go on from this folder with --takeover, or begin anew with --restart",
            )
        )

    def _error(self, message: m.Error) -> list[Action]:
        if not self._pending:
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
        return self._submit(request)

    def _submit(self, request: m.AnyRequest) -> list[Action]:
        """Send a request that is to be answered."""
        if not self._pending:
            self._nudged = False
        self._pending[request.request] = request
        return self._send(self._question(request))

    def _send(self, request: m.AnyRequest, skip: frozenset[int] = frozenset()) -> list[Action]:
        if not self._online:
            return []
        self._sending.add(request.request)
        self._reached[request.request] = self._fence
        whole = self._pending.get(request.about) if isinstance(request, m.Ask) else None
        if not isinstance(whole, m.Forward | m.Backward) or not self._may_be_there_in_part(whole):
            whole = None
        return [e.Disarm(Timer.REPLY), e.Send(request, skip, whole)]

    def _await_reply(self) -> list[Action]:
        """The deadline of what is pending runs from when all was sent, or something came."""
        return [e.Arm(Timer.REPLY, self.plan.reply_timeout_s)] if self._pending and not self._sending else []

    def _nudge(self) -> list[Action]:
        """Find out what became of the pending requests: ASK where tensors may be there already."""
        if not self._online or not self._pending:
            return []
        self._nudged = True
        waiting = [request for key, request in self._pending.items() if key not in self._sending]
        return [action for request in waiting for action in self._send(self._question(request))]

    def _ask_a_new_owner(self, message: m.AnyMessage) -> list[Action]:
        """It computes the step: ask about what else is pending, if only an owner before it had that.

        What waited for its turn there was acknowledged, so that the broker has it no more.
        """
        if not self._online or not isinstance(message, m.Forwarded | m.Gradient):
            return []
        older = [
            request
            for key, request in self._pending.items()
            if key not in self._sending and self._reached.get(key, message.fence) < message.fence
        ]
        return [action for request in older for action in self._send(self._question(request))]

    def _question(self, request: m.AnyRequest) -> m.AnyRequest:
        """What to send about a pending request: an ASK, or itself."""
        if not isinstance(request, m.Forward | m.Backward):
            return request
        if request.request not in self._reached and not self._may_be_there_in_part(request):
            return request
        ask = m.Ask(
            session=self.plan.session,
            attempt=self._live(),
            step=request.step,
            about=request.request,
            about_kind=request.kind,
            micro=request.micro,
            forward=request.request if isinstance(request, m.Forward) else request.forward,
        )
        self._asks.add(ask.request)
        self._reached[request.request] = self._fence
        return ask

    def _may_be_there_in_part(self, request: m.Forward | m.Backward) -> bool:
        """Whether an agent before this one may have sent the same values, and they are worth asking for."""
        nbytes = sum(value.nbytes for value in request.values if isinstance(value, Tensor))
        return self._begun_before and nbytes > self.plan.ask_above_bytes

    def _no_reply(self) -> list[Action]:
        if not self._pending:
            return []
        self._notes_silence += 1
        note = [e.Note("no answer yet: is a worker running?")] if self._notes_silence == 2 else []
        return [*note, *self._nudge()]

    def _answered(self, request: str) -> list[Action]:
        """A pending request was answered."""
        del self._pending[request]
        self._notes_silence = 0
        return self._await_reply() if self._pending else self._all_answered()

    def _all_answered(self) -> list[Action]:
        """Nothing is pending any more."""
        self._pending.clear()
        self._reached.clear()
        self._asks.clear()
        self._notes_silence = 0
        waited = self._waits_for is not None and self.state is not State.CLOSING
        note = [e.Note("going on")] if waited else []
        self._waits_for = None
        return [*note, e.Disarm(Timer.REPLY), e.Disarm(Timer.RETRY)]

    def _retry_later(self, delay_s: float, why: str) -> list[Action]:
        """A reason that stays is told once."""
        note = [] if why == self._waits_for else [e.Note(why)]
        self._waits_for = why
        return [*note, e.Disarm(Timer.REPLY), e.Arm(Timer.RETRY, delay_s)]

    # going back and stopping

    def _save(self) -> list[Action]:
        self._move(State.SAVING)
        return [e.Save(self.step, self.durable_step)]

    def _reopen(self) -> list[Action]:
        """Keep what this side has (the state after `step`), then begin a new attempt from there."""
        self._reopening = True
        if self.state in _COMPUTING:  # once that has ended
            self._forget_step()
            return self._all_answered()
        return self._stop_now()

    def _stop(self) -> list[Action]:
        self._stopping = True
        if self.state in (State.OPENING, State.RAISING, State.RESTORING):
            return self._end(done=False)
        if self.state in (State.FORWARDING, State.BACKWARDING) and self._online:
            return [e.Arm(Timer.STOP, self.plan.stop_grace_s)]
        return self._stop_now() if self.state in _WAITING | {State.PAUSED} else []

    def _stop_now(self) -> list[Action]:
        """Leave with a checkpoint of the last whole step; an unfinished one is forgotten."""
        self._forget_step()
        return [*self._all_answered(), *self._save()]

    def _forget_step(self) -> None:
        self._micros, self._count, self._returned = [], 0, 0

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
