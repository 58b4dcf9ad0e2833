"""Rows of activations that a worker keeps, so that a device with a frozen head names them in the next epoch.

They are kept by session and job version: a device can name what it has sent itself, in that training, and
nothing else. A row is kept where there is room and not put out by a newer one of its own session: an epoch
that is larger than the room would otherwise find nothing of what it kept. Where the room is needed, the rows
of sessions that have rested for a while go, all of a session at once. Nothing here is state: what is lost is
sent again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from broker.protocol import messages as m
from broker.protocol.ranges import ByteRanges
from broker.protocol.rows import (
    NAME_BYTES,
    Chunk,
    RowForm,
    RowName,
    bytes_of_row,
    chunks_of,
    form_of,
    forward_of,
    joined,
    name_of,
)
from spliteasy.errors import DataError

ROW_OVERHEAD_BYTES = 256
"""A row takes this much beside its bytes."""
SHARE = 0.5
"""One session may take this share of the room."""
RESTED_S = 60.0
"""The rows of a session that was not asked for anything for so long may go."""


@dataclass(slots=True)
class _Session:
    job: str
    """The digest of the job version that the rows are of."""
    used_s: float
    rows: dict[RowName, tuple[RowForm, tuple[bytes, ...]]] = field(default_factory=dict)
    nbytes: int = 0


class KeptRows:
    """The rows of all sessions of one worker; `clock` is in seconds."""

    def __init__(self, limit_bytes: int, clock: Callable[[], float]) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        """The bytes that are taken, overhead included."""
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def keep(self, forward: m.Forward, job: str) -> bool:
        """Keep the rows of a FORWARD of that job version, and return whether all of them are kept."""
        values = forward.values[: len(forward.values) - forward.targets]
        form = form_of(values, forward.samples)
        if form is None:
            return False
        session = self._of(forward.session, job)
        row_bytes, all_kept = bytes_of_row(form) + ROW_OVERHEAD_BYTES, True
        for row in chunks_of(values, form, forward.samples):
            name = name_of(row, form)
            if name in session.rows:
                continue
            if not self._has_room(session, row_bytes):
                all_kept = False
                break
            session.rows[name] = form, tuple(bytes(chunk) for chunk in row)
            self._count(session, row_bytes)
        return all_kept

    def absent(self, recall: m.Recall, job: str) -> ByteRanges:
        """The rows of a RECALL that are neither kept nor sent with it. Raises DataError where its names are
        none."""
        names, session = _names(recall), self._of(recall.session, job)
        sent = ByteRanges(recall.sent)
        unknown = ((row, row + 1) for row, name in enumerate(names) if name not in session.rows)
        return ByteRanges((row, end) for row, end in unknown if not sent.covers(row, end))

    def nbytes_of(self, recall: m.Recall, job: str) -> int:
        """The bytes of the FORWARD's rows that a RECALL stands for, of which none is absent."""
        rows = self._of(recall.session, job).rows
        kept = (rows[name][0] for name in _names(recall) if name in rows)
        sent = sum(value.nbytes for value in recall.values if isinstance(value, Tensor))
        return sent + sum(map(bytes_of_row, kept))

    def forward(self, recall: m.Recall, job: str) -> m.Forward:
        """Put the FORWARD together that a RECALL stands for, of whose rows none is absent.

        Raises DataError where the rows do not fit each other, or are not those that were named.
        """
        names, session = _names(recall), self._of(recall.session, job)
        carried = recall.values[1 : len(recall.values) - recall.targets]
        travelling = [row for begin, end in ByteRanges(recall.sent) for row in range(begin, end)]
        found: dict[int, tuple[RowForm, tuple[Chunk, ...]]] = {
            row: session.rows[name]
            for row, name in enumerate(names)
            if name in session.rows and row not in set(travelling)
        }
        if travelling:
            found |= _sent_rows(carried, travelling, names)
        forms = {form for form, _ in found.values()}
        if len(forms) != 1:
            raise DataError(f"a RECALL names rows of {len(forms)} forms")
        (form,) = forms
        if len(carried) != len(form) or any(
            isinstance(value, int) != (each is None) for value, each in zip(carried, form, strict=True)
        ):
            raise DataError("a RECALL has other values than its rows")
        tensors = iter(joined([found[row][1] for row in range(len(names))], form))
        return forward_of(recall, [v if isinstance(v, int) else next(tensors) for v in carried])

    def forget(self, name: str) -> None:
        """Let the rows of a session go."""
        session = self._sessions.pop(name, None)
        if session is not None:
            self.nbytes -= session.nbytes

    def _of(self, name: str, job: str) -> _Session:
        found = self._sessions.get(name)
        if found is not None and found.job != job:
            self.forget(name)
            found = None
        if found is None:
            found = self._sessions[name] = _Session(job, self._clock())
        found.used_s = self._clock()
        self._sessions.move_to_end(name)
        return found

    def _has_room(self, session: _Session, nbytes: int) -> bool:
        if session.nbytes + nbytes > self.limit_bytes * SHARE:
            return False
        horizon = self._clock() - RESTED_S
        while self.nbytes + nbytes > self.limit_bytes:
            name, rested = next(iter(self._sessions.items()))
            if rested.used_s > horizon or rested is session:
                return False
            self.forget(name)
        return True

    def _count(self, session: _Session, nbytes: int) -> None:
        session.nbytes += nbytes
        self.nbytes += nbytes


def _names(recall: m.Recall) -> list[RowName]:
    told = recall.values[0] if recall.values else None
    if (
        not isinstance(told, Tensor)
        or told.dtype != torch.uint8
        or tuple(told.shape) != (recall.samples, NAME_BYTES)
        or not told.is_contiguous()
    ):
        raise DataError(f"a RECALL of {recall.samples} rows does not begin with their names")
    if len(recall.values) <= recall.targets:
        raise DataError("a RECALL has no values before its targets")
    if any(begin >= end or end > recall.samples for begin, end in recall.sent):
        raise DataError("a RECALL sends rows that its batch does not have")
    raw = told.numpy().tobytes()
    return [raw[at : at + NAME_BYTES] for at in range(0, len(raw), NAME_BYTES)]


def _sent_rows(
    carried: Sequence[m.Value], travelling: Sequence[int], names: Sequence[RowName]
) -> dict[int, tuple[RowForm, tuple[Chunk, ...]]]:
    form = form_of(carried, len(travelling))
    if form is None:
        raise DataError("the values of a RECALL have no rows")
    rows = zip(travelling, chunks_of(carried, form, len(travelling)), strict=True)
    found: dict[int, tuple[RowForm, tuple[Chunk, ...]]] = {row: (form, chunks) for row, chunks in rows}
    if any(name_of(chunks, form) != names[row] for row, (_, chunks) in found.items()):
        raise DataError("a RECALL sends other rows than it names")
    return found
