"""The rows that the worker was given and has said to keep: a device names them in place of sending them."""

from __future__ import annotations

from collections.abc import Sequence

from broker.protocol import messages as m
from broker.protocol.rows import RowName, recall_of

MOST_ROWS = 1 << 18
"""So many names are held, some 30 MB. Rows beyond them are sent each time."""
LOST_RECALLS = 3
"""After so many RECALLs in a row that no worker knew anything of, none is sent until the session opens again:
an older worker may serve it, which can't read one."""


class KnownRows:
    """The names of rows that the worker keeps; without input or output."""

    def __init__(self, rows_per_epoch: int) -> None:
        """`rows_per_epoch`: samples of an epoch, 0 where rows do not come again."""
        self._rows_per_epoch = rows_per_epoch
        self._names: set[RowName] = set()
        self._offered = 0
        """Rows that were to be sent, until one of them was known."""
        self._lost = 0

    @property
    def active(self) -> bool:
        """Return whether the worker is to keep rows. They do not come again where a data set gives other
        samples each time: two epochs without one that was known show that."""
        return self._offered < 2 * self._rows_per_epoch and self._lost < LOST_RECALLS

    def opened(self) -> None:
        """A worker has opened the session: it may be one that can read a RECALL."""
        self._lost = 0

    def recall(self, forward: m.Forward, names: Sequence[RowName]) -> m.Recall | None:
        """The RECALL to send in place of a FORWARD whose rows have these names; None: send the FORWARD."""
        if self._offered >= 0:
            known = any(name in self._names for name in names)
            self._offered = -1 if known else self._offered + len(names)
        return recall_of(forward, names, self._names.__contains__)

    def answered(self, names: Sequence[RowName], *, kept: bool | None, recalled: bool) -> None:
        """The worker has computed a FORWARD with these rows, and keeps all of them, or has no room for some;
        None: it does not say."""
        self._lost = 0 if recalled else self._lost
        if kept and len(self._names) + len(names) <= MOST_ROWS:
            self._names.update(names)

    def missing(self, names: Sequence[RowName], rows: m.Ranges | None) -> None:
        """The worker lacks these rows of a RECALL; None: it knows nothing of the RECALL."""
        if rows is None:
            self._lost += 1
            return
        absent = {name for begin, end in rows for name in names[begin:end]}
        self._lost = 0
        if absent >= set(names):  # a worker that begins with none
            self._names.clear()
        self._names -= absent
