"""The requests of a device that an answer is awaited to: sent, asked about, sent again. Without I/O.

After a reconnect or a deadline the device asks what became of its tensors (ASK) instead of sending them
again, and sends what is MISSING.
"""

from __future__ import annotations

from torch import Tensor

from broker.protocol import messages as m
from device_agent.session import events as e
from device_agent.session.events import Action, Timer
from device_agent.session.plan import SessionPlan

LEAST_RETRY_S = 0.05
MAX_REASONS = 8
"""This many reasons to wait are logged for one request: a worker must not fill a log with them."""


class Outbox:
    """The requests that are on their way to the worker, or that it may already have."""

    def __init__(self, plan: SessionPlan) -> None:
        self.pending: dict[str, m.AnyRequest] = {}
        """The requests that an answer is awaited to, by id."""
        self.online = False
        self.fence = 0
        """The fence of the newest owner that has answered under this attempt."""
        self.begun_before = False
        """An agent before this one may have sent requests of the open step."""
        self.nudged = False
        """A pending request was asked about, or sent again."""
        self._plan = plan
        self._instead: dict[str, m.Recall] = {}
        """The RECALLs that are sent once in place of pending FORWARDs, by the id of these."""
        self._sending: set[str] = set()
        """The requests that the link was given and has not sent yet."""
        self._reached: dict[str, int] = {}
        """Requests that may have arrived, so that ASK comes before sending them again; and the fence of the
        newest owner that they can have reached."""
        self._asks: set[str] = set()
        self._notes_silence = 0
        self._waits_for: str | None = None
        """Why the pending request is sent again later."""
        self._notes_waiting = 0

    # what becomes of the link

    def link_up(self) -> list[Action]:
        self.online = True
        return self.nudge()

    def link_down(self) -> list[Action]:
        self.online = False
        self._sending.clear()
        return [e.Disarm(Timer.REPLY), e.Disarm(Timer.RETRY)]

    def sent(self, request: str) -> list[Action]:
        """The broker has all of it."""
        self._sending.discard(request)
        return self.await_reply()

    def not_sent(self, request: str) -> list[Action]:
        """Handle that no queue took the request."""
        self._sending.discard(request)
        self._reached.pop(request, None)
        return self.retry_later(self._plan.retry_s, "waiting for a worker to serve this broker")

    # sending

    def submit(self, request: m.AnyRequest, instead: m.Recall | None = None) -> list[Action]:
        """Send a request that is to be answered. `instead` is sent in its place, once."""
        if not self.pending:
            self.nudged = False
        self.pending[request.request] = request
        if instead is not None:
            self._instead[request.request] = instead
        return self.send(self._question(request))

    def send(self, request: m.AnyRequest, skip: m.Ranges = ()) -> list[Action]:
        """Send a request without the bytes in `skip`, which the worker has."""
        if not self.online:
            return []
        self._sending.add(request.request)
        self._reached[request.request] = self.fence
        whole = self.pending.get(request.about) if isinstance(request, m.Ask) else None
        if not isinstance(whole, m.Forward | m.Backward) or not self._may_be_there_in_part(whole):
            whole = None
        return [e.Disarm(Timer.REPLY), e.Send(request, skip, whole)]

    def send_missing(self, request: m.AnyRequest | None, message: m.Missing) -> list[Action]:
        """Send what the worker lacks, unless it is on its way; None: there is no such request yet."""
        if message.answers in self._reached:
            self._reached[message.answers] = message.fence
        return self.send(request) if request is not None and request.request not in self._sending else []

    def nudge(self) -> list[Action]:
        """Find out what became of the pending requests: ASK where tensors may be there already."""
        if not self.online or not self.pending:
            return []
        self.nudged = True
        return self._ask_about([key for key in self.pending if key not in self._sending])

    def ask_a_new_owner(self, fence: int) -> list[Action]:
        """It computes the step: ask about what else is pending, if only an owner before it had that.

        What waited for its turn there was acknowledged, so that the broker has it no more.
        """
        if not self.online:
            return []
        unsent = [key for key in self.pending if key not in self._sending]
        return self._ask_about([key for key in unsent if self._reached.get(key, fence) < fence])

    def _ask_about(self, keys: list[str]) -> list[Action]:
        return [action for key in keys for action in self.send(self._question(self.pending[key]))]

    def _question(self, request: m.AnyRequest) -> m.AnyRequest:
        """Return what to send about a pending request: an ASK, the request itself, or what stands for it."""
        instead = self._instead.get(request.request)
        if instead is not None and self.online and request.request not in self._reached:
            del self._instead[request.request]
            self._reached[request.request] = self.fence
            return instead
        if not isinstance(request, m.Forward | m.Backward | m.Ready):
            return request
        if request.request not in self._reached and not self._may_be_there_in_part(request):
            return request
        ask = m.Ask(
            session=request.session,
            attempt=request.attempt,
            step=request.step,
            about=request.request,
            about_kind=request.kind,
            micro=0 if isinstance(request, m.Ready) else request.micro,
            forward=request.forward if isinstance(request, m.Backward) else request.request,
        )
        self._asks.add(ask.request)
        self._reached[request.request] = self.fence
        return ask

    def _may_be_there_in_part(self, request: m.Forward | m.Backward | m.Ready) -> bool:
        """Return whether an agent before this one may have sent the same values, and they are worth asking
        for."""
        if isinstance(request, m.Ready):
            return False
        nbytes = sum(value.nbytes for value in request.values if isinstance(value, Tensor))
        return self.begun_before and nbytes > self._plan.ask_above_bytes

    # waiting

    def asked(self, request: str) -> bool:
        """Return whether that is an ASK of the pending requests."""
        return request in self._asks

    def await_reply(self) -> list[Action]:
        """The deadline of what is pending runs from when all was sent, or something came."""
        return [e.Arm(Timer.REPLY, self._plan.reply_timeout_s)] if self.pending and not self._sending else []

    def no_reply(self) -> list[Action]:
        """The deadline has passed."""
        if not self.pending:
            return []
        self._notes_silence += 1
        note = [e.Note("no answer yet: is a worker running?")] if self._notes_silence == 2 else []
        return [*note, *self.nudge()]

    def answered(self, request: str) -> list[Action]:
        """A pending request was answered."""
        del self.pending[request]
        self._instead.pop(request, None)
        self._notes_silence = 0
        return self.await_reply() if self.pending else self.all_answered()

    def all_answered(self, *, quiet: bool = False) -> list[Action]:
        """Note that nothing is pending any more. `quiet` says that nothing follows that a person would wait
        for."""
        self.pending.clear()
        self._instead.clear()
        self._reached.clear()
        self._asks.clear()
        self._notes_silence = 0
        waited = self._waits_for is not None and not quiet
        note = [e.Note("going on")] if waited else []
        self._waits_for, self._notes_waiting = None, 0
        return [*note, e.Disarm(Timer.REPLY), e.Disarm(Timer.RETRY)]

    def retry_later(self, delay_s: float, why: str) -> list[Action]:
        """Wait before asking again. A reason that stays is logged once, and few reasons are; no
        delay is under the least."""
        self._notes_waiting += why != self._waits_for
        note = [] if why == self._waits_for or self._notes_waiting > MAX_REASONS else [e.Note(why)]
        self._waits_for = why
        return [*note, e.Disarm(Timer.REPLY), e.Arm(Timer.RETRY, max(delay_s, LEAST_RETRY_S))]
