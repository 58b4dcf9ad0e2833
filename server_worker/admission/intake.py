"""The intake turns deliveries into authenticated requests. It is the first to check what a device sends."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import get_args

from broker import decode
from broker.protocol import messages as m
from broker.protocol.assembler import Assembled, Assembler, OverBudget, Partial
from broker.protocol.frames import Chunk, parse_frame
from broker.transport.base import Delivery
from broker.transport.topology import (
    FRONT_SHARD,
    REPLY_TO,
    device_of_key,
    device_of_reply_queue,
    shard_label,
    shard_of,
)
from server_worker.admission.quotas import Quotas
from server_worker.config import Trust
from server_worker.inbound import Inbound, Settlement
from spliteasy.errors import WireError

_REQUESTS = get_args(m.AnyRequest)
MAX_LEFT_BEHIND = 1024
"""Unfinished requests that a worker remembers another one to have left behind."""
LEAST_RANGES, RANGE_BYTES = 4, 32
"""The ranges that a HAVE names in any case, and the bytes that each of them takes in it at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitedFrames:
    """A part of a request."""

    outcome: Partial | OverBudget
    device: str
    reply_to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Misdirected:
    """A whole request that came by another shard than its session's, which is `shard`."""

    request: m.Open | m.SessionRequest
    reply_to: str
    shard: int


class Intake:
    """Authenticates deliveries and puts requests together from their frames."""

    def __init__(self, assembler: Assembler, *, trust: Trust, shards: int, quotas: Quotas) -> None:
        self._assembler = assembler
        self._quotas = quotas
        self._trust = trust
        self._shards = shards
        self._left_behind: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Requests whose last frame was delivered before: the worker that had them whole ended with them."""

    def take(
        self, delivery: Delivery, settlement: Settlement, *, arrived_s: float
    ) -> Inbound | AwaitedFrames | Misdirected:
        """Raises WireError for what must not be served: it goes to the dead queue with that reason.

        Whatever it is, it is counted first; beyond the quota what can't be read is dropped without a trace.
        """
        within = self._quotas.frame(self._charged(delivery), len(delivery.body))
        try:
            device, reply_to = self._sender(delivery)
            if not within:
                return self._over_quota(device, reply_to, parse_frame(delivery.body))
        except WireError:
            if within:
                raise
            return AwaitedFrames(outcome=OverBudget(message_id="", last=False), device="", reply_to="")
        outcome = self._assembler.add(device, delivery.body)
        if not isinstance(outcome, Assembled):
            if isinstance(outcome, Partial) and outcome.last:
                # Whatever makes a request whole is acknowledged after the reply, and wakes the successor of
                # a worker that died before. That must be its last frame: no other makes one ask for more.
                self._assembler.forget_last(device, outcome.message_id)
                if delivery.redelivered:
                    self._remember(device, outcome.message_id)
            return AwaitedFrames(outcome=outcome, device=device, reply_to=reply_to)
        if not self._quotas.message(device):
            return self._over_quota(device, reply_to, outcome)
        request = decode(outcome.body)
        if not isinstance(request, _REQUESTS):
            raise WireError(f"a device may not send {request.kind}")
        if request.device != device:
            raise WireError(f"device {device} sent a request of session {request.session}")
        label = delivery.routing_key.rpartition(".")[2]
        if isinstance(request, m.GetJob) and label != FRONT_SHARD:
            raise WireError(f"{request.kind} of {request.session} came by {delivery.routing_key}")
        within = (
            self._quotas.job(device)
            if isinstance(request, m.GetJob) and not request.without_parts
            else self._quotas.session(device, request.session)
        )
        if not within:
            return self._over_quota(device, reply_to, outcome)
        if not isinstance(request, m.GetJob):
            shard = shard_of(request.session, self._shards)
            if label != shard_label(shard):
                return Misdirected(request=request, reply_to=reply_to, shard=shard)
        return Inbound(
            request=request,
            raw=outcome.body,
            reply_to=reply_to,
            chunk_bytes=outcome.chunk_bytes,
            again=delivery.redelivered or self._was_left_behind(device, outcome.message_id),
            arrived_s=arrived_s,
            settlement=settlement,
        )

    def _remember(self, device: str, message_id: str) -> None:
        self._left_behind[device, message_id] = None
        if len(self._left_behind) > MAX_LEFT_BEHIND:
            self._left_behind.popitem(last=False)

    def _was_left_behind(self, device: str, message_id: str) -> bool:
        """Return whether another worker had the request before; it is asked once a request."""
        if (device, message_id) not in self._left_behind:
            return False
        del self._left_behind[device, message_id]
        return True

    def _over_quota(self, device: str, reply_to: str, dropped: Chunk | Assembled) -> AwaitedFrames:
        """Drop what a device sent beyond its quota. BUSY tells it so at the end of its message, and not too
        often."""
        last = not isinstance(dropped, Chunk) or dropped.last
        outcome = OverBudget(message_id=dropped.message_id, last=last and self._quotas.answer(device))
        return AwaitedFrames(outcome=outcome, device=device, reply_to=reply_to)

    def may_bury(self, delivery: Delivery) -> bool:
        """Return whether a delivery that must not be served is kept as a dead letter; else it is dropped."""
        return self._quotas.dead_letter(self._charged(delivery), len(delivery.body))

    def affords(self, reply_to: str, nbytes: int) -> bool:
        """Return whether a small answer of that size may be sent there: it costs no more than what was
        received."""
        device = device_of_reply_queue(reply_to)
        return device is not None and self._quotas.afford(device, nbytes)

    def held(self, device: str, message_id: str) -> m.Ranges:
        """Return which bytes of an unfinished request are here, as far as a HAVE can name them, and is paid
        for.

        What it does not tell is sent again.
        """
        paid = int(self._quotas.credit(device) / 2 / RANGE_BYTES)
        return self._assembler.held(device, message_id)[: min(m.MAX_RANGES, max(LEAST_RANGES, paid))]

    def asked(self, ask: m.Ask) -> m.Ranges:
        """Return which bytes of the asked request are here, also under another id: an agent that was
        restarted encodes the request again.

        Looking for those costs the device as much as sending them.
        """
        device = ask.device
        held = self.held(device, ask.about)
        if held or ask.total is None or ask.block_bytes is None or not ask.digests:
            return held
        if not self._quotas.work(device, self._assembler.bytes_of(device)):
            return ()
        self._assembler.adopt(
            device, ask.about, block_bytes=ask.block_bytes, total=ask.total, digests=ask.digests
        )
        return self.held(device, ask.about)

    @property
    def uploads(self) -> int:
        """Unfinished requests."""
        return self._assembler.messages_held

    @property
    def upload_bytes(self) -> int:
        """Reserved for unfinished requests."""
        return self._assembler.bytes_held

    def _charged(self, delivery: Delivery) -> str:
        """Return the account that a delivery is charged to: its sender, as far as the broker knows that."""
        named = device_of_key(delivery.routing_key) or ""
        return named if self._trust is Trust.OPEN else delivery.principal or named

    def _sender(self, delivery: Delivery) -> tuple[str, str]:
        """The device that sent it and where it listens."""
        if delivery.copied:
            raise WireError("CC and BCC are refused: they can bypass the broker's topic permissions")
        device = device_of_key(delivery.routing_key)
        if device is None:
            raise WireError(f"routing key {delivery.routing_key!r} names no device")
        if self._trust is Trust.ENROLLED and delivery.principal != device:
            raise WireError(f"account {delivery.principal!r} spoke for device {device}")
        reply_to = delivery.headers.get(REPLY_TO, "")
        if device_of_reply_queue(reply_to) != device:
            raise WireError(f"reply queue {reply_to!r} is not one of device {device}")
        return device, reply_to
