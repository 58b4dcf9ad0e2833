"""Repeats bound how soon a device sends the same request again, whatever a worker answers.

A worker's answers make a device send: what is missing, what was cut off, another attempt. The first times it
does so at once. Then it takes longer and longer, so that no worker makes a device send at will.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.protocol import messages as m

FREE = 3
"""A request is sent this often without delay, over one connection."""
LEAST_S = 0.5
"""Then after so long, and twice as long each time, up to …"""
MOST_S = 2.0
MOST_WITH_TENSORS_S = 8.0
MOST_ANEW_S = 30.0
"""… so long, where the request is small, carries tensors, or begins an attempt."""
FORGIVEN_S = 10.0
"""After this long a request counts one time fewer."""
MOST_COUNTED = 64.0
"""The most times that count. The delay has long stopped growing then, and a device may ask for hours."""
MAX_KEYS = 4096


@dataclass(slots=True)
class _Sent:
    times: float
    last_s: float


class Repeats:
    """Counts what was sent, by request; `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sent: dict[str, _Sent] = {}

    def connected(self) -> None:
        """Start again on a new connection: what was cut off is sent at once, while attempts go on
        counting."""
        self._sent = {key: sent for key, sent in self._sent.items() if key == m.Open.__name__}

    def wait_s(self, request: m.Request) -> float:
        """Return how long to wait before the request is sent. It counts as sent then."""
        key, now_s = key_of(request), self._clock()
        sent = self._sent.pop(key, None) or _Sent(0.0, now_s)
        times = min(MOST_COUNTED, max(0.0, sent.times - max(0.0, now_s - sent.last_s) / FORGIVEN_S))
        least_s = 0.0 if times < FREE else min(LEAST_S * 2 ** (times - FREE), _most_s(request))
        due_s = max(now_s, sent.last_s + least_s)
        self._sent[key] = _Sent(times + 1, due_s)
        if len(self._sent) > MAX_KEYS:
            del self._sent[next(iter(self._sent))]
        return due_s - now_s


def key_of(request: m.Request) -> str:
    """Return the key that two sendings share where they count as the same."""
    if isinstance(request, m.Ask):
        return f"{request.kind} {request.about}"
    if isinstance(request, m.Open | m.Close | m.GetJob):
        return type(request).__name__  # a new one each time
    return request.request


def _most_s(request: m.Request) -> float:
    if isinstance(request, m.Open):
        return MOST_ANEW_S
    return MOST_WITH_TENSORS_S if isinstance(request, m.Carrier) else MOST_S
