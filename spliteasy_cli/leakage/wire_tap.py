"""A broker in this process that keeps a copy of all that passes, and may change what workers answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from broker.protocol import messages as m
from broker.protocol.assembler import Assembled, Assembler
from broker.protocol.envelope import decode, encode
from broker.protocol.frames import CHUNK_BYTES, to_frames
from broker.transport.in_process import MemoryBroker, Stored


class Intruder(Protocol):
    """An intruder that changes what workers answer."""

    def saw(self, message: m.AnyMessage) -> None:
        """A whole message is passing."""
        ...

    def change(self, gradient: m.Gradient) -> m.Gradient:
        """Return what the device gets in place of a GRADIENT."""
        ...


class TappedBroker(MemoryBroker):
    """Routes as `MemoryBroker` does. `messages` holds each message in the order in which it became whole.

    With an intruder, what workers answer is held back until it is whole, and sent on as it was left.
    """

    def __init__(self, intruder: Intruder | None = None) -> None:
        super().__init__()
        self.messages: list[m.AnyMessage] = []
        self._intruder = intruder
        self._assembler = Assembler()

    def route(self, target: str, stored: Stored, *, to_queue: bool) -> bool:
        outcome = self._assembler.add(stored.principal, stored.body)
        message = decode(outcome.body) if isinstance(outcome, Assembled) else None
        if self._intruder is None or not to_queue:
            self._keep(message)
            return super().route(target, stored, to_queue=to_queue)
        if message is None:
            return True
        if isinstance(message, m.Gradient):
            message = self._intruder.change(message)
        self._keep(message)
        for frame in to_frames(encode(message), message_id=m.new_nonce(), chunk_bytes=CHUNK_BYTES):
            super().route(target, replace(stored, body=frame), to_queue=True)
        return True

    def _keep(self, message: m.AnyMessage | None) -> None:
        if message is not None:
            self.messages.append(message)
            if self._intruder is not None:
                self._intruder.saw(message)
