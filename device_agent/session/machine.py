"""A device's session: the protocol as a state machine, without I/O.

`DeviceSession.handle` takes one event and returns actions. Its states are in `states.py`, the step
that is open in `open_step.py`, and the requests that it asks about and sends again in `outbox.py`.

A batch in micro-batches goes through the same states, each computation once for every micro-batch, in
order, as soon as its input is there (`_go_on`): requests of several are on the way meanwhile.
"""

from __future__ import annotations

from dataclasses import replace

from broker.protocol import messages as m
from device_agent.session import events as e
from device_agent.session.events import Action, Event, Timer
from device_agent.session.known_rows import KnownRows
from device_agent.session.open_step import Micro, OpenStep
from device_agent.session.outbox import Outbox
from device_agent.session.plan import SessionPlan
from device_agent.session.states import COMPUTING, WAITING, State, transition
from spliteasy.codecs.packer import Packed
from spliteasy.errors import RemoteError, SplitEasyError, StateError
from spliteasy.training.digest import digest_of


class DeviceSession:
    """The protocol of one device's training. `step` is the last step that this device has applied."""

    def __init__(self, plan: SessionPlan, *, held: tuple[int, ...]) -> None:
        self.plan = plan
        self.state = State.RAISING
        self.step = 0
        self.held = held
        self.durable_step = 0
        self.taken = 0
        """Steps that were applied in this run; those of a rewind count again."""
        self.newest: str | None = None
        """The digest of a newer version of the job, where the worker knows of one."""
        self._attempt: m.AttemptRef | None = None
        self._open = OpenStep(plan)
        self._ready: m.Ready | None = None
        """The hand-in at the end of a round, while its mean is waited for."""
        self._outbox = Outbox(plan)
        self._known = KnownRows(plan.rows_per_epoch)
        self._stopping = False
        self._hold: str | None = None
        """Why no step may begin now."""
        self._reopening = False
        self._checkpoint_asked = False
        self._eval_index = 0
        self._evaluated = -1
        """The step of the last evaluation."""
        self._finished = False
        """The training has ended at this step, by its evaluations."""
        self._best = 0
        """The step whose state is kept as the best so far; 0: none."""
        self._takeover, self._restart = plan.takeover, plan.restart

    def start(self) -> list[Action]:
        """The first actions."""
        return [e.RaiseAttempt()]

    def handle(self, event: Event) -> list[Action]:
        """Take one event. An event that nobody waits for any more changes nothing."""
        if self.state is State.ENDED:
            return []
        before = self.state
        actions = self._handle(event)
        if self.state is not before and transition(before, event, self.state) is None:
            raise AssertionError(f"no way from {before} to {self.state} on {event}")
        return actions

    def _handle(self, event: Event) -> list[Action]:
        match event:
            case e.LinkUp():
                return self._outbox.link_up()
            case e.LinkDown():
                return self._outbox.link_down()
            case e.Sent(request=request):
                return self._outbox.sent(request)
            case e.Arriving():
                return self._outbox.await_reply()
            case e.NotSent(request=request):
                return self._outbox.not_sent(request)
            case e.Fired(timer=Timer.STOP):
                return self._stop_now() if self.state in (State.FORWARDING, State.BACKWARDING) else []
            case e.Fired(timer=Timer.REPLY):
                return self._outbox.no_reply()
            case e.Fired(timer=Timer.RETRY):
                return self._outbox.nudge()
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
                return self._begin_attempt(attempt)
            case State.RESTORING, e.Restored(held=held) as restored:
                self.held = held
                self._evaluated = self.step if restored.evaluated else -1
                self._finished, self._best = restored.finished, restored.best
                return self._next(saved=True)
            case (
                (State.HEAD, e.HeadDone())
                | (State.HANDING_IN, e.HandInDone())
                | (State.TAIL, e.TailDone())
                | (State.APPLYING, e.HeadBackwardDone())
                | (State.EVAL_HEAD, e.EvalHeadDone())
            ) if self._stopping or self._reopening:
                return self._stop_now()
            case State.HEAD, e.HeadDone() as done:
                return self._forward(done)
            case State.TAIL, e.TailDone() as done:
                return self._backward(done)
            case State.HANDING_IN, e.HandInDone() as done:
                return self._hand_in(done)
            case State.APPLYING, e.HeadBackwardDone():
                self._open.returned += 1
                return self._go_on()
            case State.APPLYING, e.Applied():
                self.step += 1
                self.taken += not self.plan.is_round_end(self.step)
                self._outbox.begun_before = False
                self._open.forget()
                return self._next(saved=False)
            case State.SAVING, e.Saved(held=held):
                self.held = held
                self._checkpoint_asked = False
                return self._after_saving()
            case State.GOING_BACK, e.WentBack(held=held):
                self.held = held
                if self._stopping:
                    return self._end(done=False)
                self.state = State.RAISING
                return [e.RaiseAttempt(above=self._live().number)]
            case State.EVAL_HEAD, e.EvalHeadDone() as done:
                return self._evaluate(done)
            case State.EVAL_TAIL, e.EvalTailDone() as tail:
                return self._evaluated_batch(tail)
        raise AssertionError(f"{type(event).__name__} while {self.state.value}")

    def _begin_attempt(self, attempt: m.AttemptRef) -> list[Action]:
        self._attempt, self._outbox.fence = attempt, 0
        request = m.Open(
            session=self.plan.session,
            attempt=attempt,
            digest=self.plan.digest,
            held=self.held[-m.MAX_HELD_STEPS :],
            agent=self.plan.agent,
            total_steps=self.plan.total_steps,
            restart=self._restart,
            previous=self.plan.previous,
        )
        return self._request(State.OPENING, request)

    def _forward(self, head: e.HeadDone) -> list[Action]:
        if not self._known.active:
            head = replace(head, names=None)
        forward = self._open.forward(
            head,
            attempt=self._live(),
            step=self.step + 1,
            oldest_checkpoint=min(self.held),
            best=self.step > 0 and self._best == self.step,
        )
        micro = self._open.micros[-1]
        micro.recall = self._known.recall(forward, micro.names) if micro.names else None
        return [*self._outbox.submit(forward, micro.recall), *self._go_on()]

    def _backward(self, tail: e.TailDone) -> list[Action]:
        backward = self._open.backward(tail, attempt=self._live(), step=self.step + 1)
        return [*self._outbox.submit(backward), *self._go_on()]

    def _hand_in(self, done: e.HandInDone) -> list[Action]:
        self._ready = m.Ready(
            session=self.plan.session,
            attempt=self._live(),
            step=self.step + 1,
            round=done.round,
            last=self.step + 1 >= self.plan.total_steps,
            whole=done.whole,
            names=tuple(done.ends),
            values=tuple(done.ends.values()),
            fleet_key=done.fleet_key,
            samples=done.samples,
            accuracy=done.accuracy,
            nonce=done.nonce,
            oldest_checkpoint=min(self.held),
        )
        return self._request(State.ROUND_END, self._ready)

    def _evaluate(self, head: e.EvalHeadDone) -> list[Action]:
        request = m.Eval(
            session=self.plan.session,
            attempt=self._live(),
            step=self.step,
            samples=head.samples,
            length=head.length,
            **m.carried(head.values),
        )
        return self._request(State.EVALUATING, request)

    def _evaluated_batch(self, tail: e.EvalTailDone) -> list[Action]:
        if tail.more and not self._stopping:
            self._eval_index += 1
            self.state = State.EVAL_HEAD
            return [e.EvalHead(self._eval_index)]
        self._evaluated, self._finished, self._best = self.step, tail.finished, tail.best
        if self._best == self.step:  # its checkpoint is the one that the training may end with
            return self._save()
        return self._next(saved=not self.plan.stops_early)

    # what comes next

    def _next(self, *, saved: bool) -> list[Action]:
        """Return the actions that follow when the device's own state is that of `step`, whole."""
        plan, step = self.plan, self.step
        last = step >= plan.total_steps or self._finished
        due = plan.evaluates_after(step) and plan.eval_batches > 0 and self._evaluated != step
        if due and plan.stops_early and not self._stopping:
            return self._begin_evaluation()
        leaving = last or self._stopping or self._hold is not None
        if not saved and (plan.keeps(step) or leaving or self._checkpoint_asked):
            return self._save()
        if self._stopping and not last:
            return self._end(done=False)
        if due and not self._just_restored():
            return self._begin_evaluation()
        if last:
            return self._request(
                State.CLOSING, m.Close(session=plan.session, attempt=self._live(), step=step)
            )
        return self._begin_step()

    def _begin_evaluation(self) -> list[Action]:
        self._eval_index = 0
        self.state = State.EVAL_HEAD
        return [e.EvalHead(0)]

    def _begin_step(self) -> list[Action]:
        if self._hold is not None:
            self.state = State.PAUSED
            return [e.Note(f"paused: {self._hold}")]
        resumed = [e.Note("going on")] if self.state is State.PAUSED else []
        if self.plan.is_round_end(self.step + 1):
            self.state = State.HANDING_IN
            return [*resumed, e.HandIn()]
        return [*resumed, *self._go_on()]

    def _go_on(self) -> list[Action]:
        """Begin the step's next computation, or wait for what it needs.

        Heads come first, so that the link and the worker have work as early as can be.
        """
        step = self._open
        if step.is_skipped:
            self.state = State.APPLYING
            return [*self._all_answered(), e.Apply(Packed(()), None, skipped=True)]
        if step.needs_head:
            self.state = State.HEAD
            return [e.RunHead(self.step + 1, len(step.micros))]
        tail = step.next_tail()
        if tail is not None and (outputs := step.micros[tail].outputs) is not None:
            step.micros[tail].outputs = None
            step.micros[tail].outputs_digest = digest_of(outputs.values)
            self.state = State.TAIL
            return [e.RunTail(outputs, tail)]
        if (gradient := step.take_gradient()) is not None:
            self.state = State.APPLYING
            last = step.returned == step.count - 1
            backward = e.Apply if last else e.RunHeadBackward
            return [backward(m.packed_in(gradient), gradient.loss)]
        waiting = State.BACKWARDING if self.plan.has_tail and tail is None else State.FORWARDING
        self.state = waiting
        return []

    def _just_restored(self) -> bool:
        """A resume in mid-training does not evaluate again; one after the last step does."""
        return self.state is State.RESTORING and self.step < self.plan.total_steps

    def _after_saving(self) -> list[Action]:
        if self._stopping:
            return self._end(done=False)
        if self._reopening:
            self._reopening = False
            self.state = State.RAISING
            return [e.RaiseAttempt(above=self._live().number)]
        return self._next(saved=True)

    # messages

    def _received(self, message: m.AnyMessage) -> list[Action]:
        if self._is_from_an_older_owner(message):
            return self._doubt_the_store()
        if not self._is_ours(message):
            return []
        taken = self._taken(message)
        if isinstance(message, m.Forwarded | m.Gradient):
            return [*taken, *self._outbox.ask_a_new_owner(message.fence)]
        return taken

    def _taken(self, message: m.AnyMessage) -> list[Action]:
        match message:
            case m.Opened() if self.state is State.OPENING:
                self.step = message.step
                self.durable_step = message.durable_step
                self.newest = message.newest
                self._takeover = self._restart = False
                self._outbox.begun_before = message.attempt.number > 1
                self._known.opened()
                self.state = State.RESTORING
                told = (
                    []
                    if self.newest is None
                    else [e.Note(f"a newer version was submitted: {self.newest[:12]}")]
                )
                return [*told, *self._all_answered(), e.Restore(message.step)]
            case m.Forwarded() if (micro := self._awaiting(message)) is not None:
                micro.outputs = m.packed_in(message)
                return self._arrived(message)
            case m.Gradient() if (micro := self._awaiting(message)) is not None:
                self.durable_step = max(self.durable_step, message.durable_step)
                self._checkpoint_asked = self._checkpoint_asked or message.checkpoint
                micro.gradient = message
                return self._arrived(message)
            case m.Mean() if self.state is State.ROUND_END and message.answers in self._outbox.pending:
                self.durable_step = max(self.durable_step, message.durable_step)
                self.state = State.APPLYING
                self._ready = None
                return [*self._all_answered(), e.TakeMean(message)]
            case m.Missing(missing="READY") if self.state is State.ROUND_END:
                return self._outbox.send_missing(self._ready, message)
            case m.Missing() if message.step == self.step + 1:
                return self._missing(message)
            case m.Working():
                return self._outbox.await_reply()
            case m.Evaluated() if self.state is State.EVALUATING and message.step == self.step:
                self.state = State.EVAL_TAIL
                return [*self._all_answered(), e.EvalTail(self._eval_index, self.step, m.packed_in(message))]
            case m.Closed() if self.state is State.CLOSING:
                if self._best in (0, self.step):
                    return [*self._all_answered(), *self._end(done=True)]
                # Only now: what the worker keeps of the best step can't be lost any more.
                self.state = State.GOING_BACK
                return [*self._all_answered(), e.GoBack(self._best)]
            case m.Have() if self._outbox.pending:
                return self._send_rest(message)
            case m.Busy() if self._outbox.pending:
                return self._outbox.retry_later(message.retry_after_s, message.reason)
            case m.Reopen() if self._outbox.pending and self.state is not State.OPENING:
                return [e.Note(f"opening again: {message.reason}"), *self._reopen()]
            case m.Superseded():
                return self._superseded(message)
            case m.Error():
                return self._error(message)
        return []

    def _is_ours(self, message: m.AnyMessage) -> bool:
        """Return whether a message is a reply to this attempt, and to what it has sent."""
        if not isinstance(message, m.Receipt | m.Reply):
            return False
        answers_us = message.answers in self._kept() or self._outbox.asked(message.answers)
        if isinstance(message, m.Receipt):
            return answers_us
        if message.session != self.plan.session:
            return False
        if isinstance(message, m.SessionReply | m.Superseded | m.Reopen | m.Working):
            if message.attempt != self._attempt:
                return False
            if isinstance(message, m.SessionReply):
                self._outbox.fence = message.fence
            return True
        return answers_us

    def _is_from_an_older_owner(self, message: m.AnyMessage) -> bool:
        return (
            isinstance(message, m.SessionReply)
            and message.session == self.plan.session
            and message.attempt == self._attempt
            and message.fence < self._outbox.fence
        )

    def _doubt_the_store(self) -> list[Action]:
        """Handle a reply of an older owner: ignore it, unless it answers what was asked again.

        A worker that has lost the session without knowing sends such replies. Where one answers what was
        asked again, the store went back and counts fences again: a new attempt begins from what both have.
        """
        if not self._outbox.nudged or self.state is State.OPENING or not self._outbox.pending:
            return []
        return [e.Note("opening again: the store went back"), *self._reopen()]

    def _missing(self, message: m.Missing) -> list[Action]:
        """Send what the worker lacks: the whole FORWARD, where it does not keep the rows of a RECALL."""
        micro = self._open.micro_of(message)
        if micro is None:
            return self._outbox.send_missing(None, message)
        if message.missing != "FORWARD":
            return self._outbox.send_missing(micro.backward, message)
        if micro.recall is not None:
            self._known.missing(micro.names, message.rows)
            micro.recall = None
        return self._outbox.send_missing(micro.forward, message)

    def _awaiting(self, message: m.Forwarded | m.Gradient) -> Micro | None:
        """The micro-batch that waits for this."""
        return self._open.answered_by(message) if message.answers in self._outbox.pending else None

    def _arrived(self, message: m.Forwarded | m.Gradient) -> list[Action]:
        """Begin the computation whose input has come, now or after the one that is running."""
        micro = self._open.answered_by(message)
        if micro is not None and micro.names:
            self._known.answered(micro.names, kept=message.kept, recalled=micro.recall is not None)
            micro.recall = None
        answered = self._outbox.answered(message.answers)
        return answered if self.state in COMPUTING else [*answered, *self._go_on()]

    def _kept(self) -> dict[str, m.AnyRequest]:
        """The requests that are pending or can be sent again, by id."""
        return {**self._open.requests(), **self._outbox.pending}

    def _send_rest(self, message: m.Have) -> list[Action]:
        """Send what the worker lacks of the request."""
        request = self._kept().get(message.answers)
        return [] if request is None else self._outbox.send(request, message.ranges)

    def _superseded(self, message: m.Superseded) -> list[Action]:
        if self.state is State.OPENING and (self._takeover or self._restart):
            self.state = State.RAISING
            return [*self._all_answered(), e.RaiseAttempt(above=message.newest)]
        return self._fail(
            StateError(
                f"the store knows attempt {message.newest} of {self.plan.session}, newer than this one",
                hint="another agent runs as this device, or this state folder is an old or a new one: stop "
                "the other agent, go on from this folder with --takeover, or start over with --restart",
            )
        )

    def _error(self, message: m.Error) -> list[Action]:
        if not self._outbox.pending:
            return []
        if message.retriable:
            return self._outbox.retry_later(self.plan.retry_s, message.message)
        if message.code in ("no-common-step", "other-job"):
            return self._fail(StateError(message.message, hint=message.hint))
        return self._fail(RemoteError(message.message, code=message.code, hint=message.hint))

    def _request(self, state: State, request: m.AnyRequest) -> list[Action]:
        """Go to `state` and wait there for the answer to `request`."""
        self.state = state
        return self._outbox.submit(request)

    def _all_answered(self) -> list[Action]:
        return self._outbox.all_answered(quiet=self.state is State.CLOSING)

    # going back and stopping

    def _save(self) -> list[Action]:
        self.state = State.SAVING
        return [e.Save(self.step, self.durable_step, self._checkpoint_asked)]

    def _reopen(self) -> list[Action]:
        """Keep what this side has (the state after `step`), then begin a new attempt from there."""
        self._reopening = True
        if self.state in COMPUTING:  # once that has ended
            self._open.forget()
            return self._all_answered()
        return self._stop_now()

    def _stop(self) -> list[Action]:
        self._stopping = True
        if self.state in (State.OPENING, State.RAISING, State.RESTORING):
            return self._end(done=False)
        if self.state in (State.FORWARDING, State.BACKWARDING) and self._outbox.online:
            return [e.Arm(Timer.STOP, self.plan.stop_grace_s)]
        return self._stop_now() if self.state in WAITING | {State.PAUSED} else []

    def _stop_now(self) -> list[Action]:
        """Leave with a checkpoint of the last whole step; an unfinished one is forgotten."""
        self._open.forget()
        return [*self._all_answered(), *self._save()]

    def _end(self, *, done: bool) -> list[Action]:
        self.state = State.ENDED
        return [e.Finish(done)]

    def _fail(self, error: SplitEasyError) -> list[Action]:
        self.state = State.ENDED
        return [e.Fail(error)]

    def _live(self) -> m.AttemptRef:
        assert self._attempt is not None
        return self._attempt
