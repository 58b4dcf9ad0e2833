"""What workers say yes to, in a simulated fleet: a function of what the store has, and can't lose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

from broker.protocol import messages as m
from server_worker.actor import SessionActor
from spliteasy.fleet.record import RoundRecord
from spliteasy.training.digest import strong_digest
from spliteasy.training.segment_trainer import tensors_of


@dataclass(slots=True)
class Replies:
    """The commits and records that the store took, beside the replies that speak of them."""

    clock: Callable[[], float]
    loss_window_s: float
    found: list[str] = field(default_factory=list)
    _committed: set[tuple[str, int]] = field(default_factory=set)
    _written: dict[str, float] = field(default_factory=dict)
    """When each record was written first, by its digest."""
    _newest: dict[int, str] = field(default_factory=dict)
    """The records of the chain as it is, by number."""
    _means: dict[tuple[str, bool], str] = field(default_factory=dict)
    """The ends that the first reply of each kind about a record carried."""

    def committed(self, session: str, step: int) -> None:
        self._committed.add((session, step))

    def appended(self, line: bytes) -> None:
        """Judge what `append_round` says of a number: it is the same record until the store goes back."""
        record = RoundRecord.from_json(line)
        first = self._newest.setdefault(record.number, record.digest)
        if first != record.digest:
            self.found.append(f"round {record.number} was closed twice")
        self._written.setdefault(record.digest, self.clock())

    def rolled_back(self) -> None:
        """The store lost its last writes: what was decided since is decided anew."""
        self._newest.clear()

    def said(self, reply: m.Reply | m.Receipt) -> None:
        """Judge a reply as a worker begins to send it."""
        if not isinstance(reply, m.Gradient | m.Mean):
            return
        if (reply.session, reply.step) not in self._committed:
            self.found.append(f"{reply.session}: step {reply.step} was told before it was committed")
        if not isinstance(reply, m.Mean):
            return
        written = self._written.get(reply.record)
        if written is None:
            self.found.append(f"{reply.session}: it was told of a round {reply.round} that nobody closed")
        elif self.clock() - written < self.loss_window_s:
            self.found.append(f"{reply.session}: it was told of round {reply.round} too early")
        ends = " ".join(map(strong_digest, tensors_of(reply.values)))
        if self._means.setdefault((reply.record, reply.kept), ends) != ends:
            self.found.append(f"{reply.session}: it was sent another mean of round {reply.round}")


@contextmanager
def heard(replies: Replies | None) -> Iterator[None]:
    """Show each reply that a worker begins to send to `replies`, if there is one."""
    if replies is None:
        yield
        return
    begin = SessionActor._begin_to_send

    def begun(self: SessionActor, reply: m.Reply | m.Receipt) -> None:
        replies.said(reply)
        begin(self, reply)

    with mock.patch.object(SessionActor, "_begin_to_send", begun):
        yield
