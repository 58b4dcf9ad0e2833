"""How much of a worker one device may use: rates with a burst, and sessions at a time.

All counts are of this worker. What they are kept in is bounded too: of the devices, the one that was heard
of longest ago is forgotten first, when its buckets have long been full again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_DEVICES = 10_000
FRAME_COST_BYTES = 4096
"""The least that a frame counts for, so that tiny ones are not free."""

ANSWERS_PER_S, ANSWERS = 10.0, 20.0
"""BUSY is said so often; to a flood beyond it, silence: no answer may cost more than the question."""

GET_JOB_COST = 200.0
"""In messages: the answer is the whole job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceQuota:
    """What one device may ask of one worker. Bursts are in seconds of the rate."""

    messages_per_s: float = 2000.0
    bytes_per_s: float = 1 << 30
    burst_s: float = 2.0
    sessions: int = 8
    """Jobs that it trains at a time: sessions that got a request within `session_s`."""
    session_s: float = 60.0


@dataclass(slots=True)
class _Bucket:
    level: float
    at_s: float

    def take(self, cost: float, *, rate: float, burst: float, now_s: float) -> bool:
        """Whether there was enough. What costs more than half the burst passes when that is there."""
        self.level = min(burst, self.level + (now_s - self.at_s) * rate)
        self.at_s = now_s
        if self.level < min(cost, burst / 2):
            return False
        self.level -= cost
        return True


@dataclass(slots=True)
class _Use:
    messages: _Bucket
    bytes: _Bucket
    answers: _Bucket
    sessions: dict[str, float] = field(default_factory=dict)
    """When each got its last request."""


class Quotas:
    """Counts what each device uses; `clock` is in seconds."""

    def __init__(self, quota: DeviceQuota, clock: Callable[[], float]) -> None:
        self._quota = quota
        self._clock = clock
        self._uses: OrderedDict[str, _Use] = OrderedDict()

    def frame(self, device: str, frame_bytes: int) -> bool:
        """Whether the device may send a frame of that size now."""
        rate, cost = self._quota.bytes_per_s, max(frame_bytes, FRAME_COST_BYTES)
        return self._of(device).bytes.take(
            cost, rate=rate, burst=rate * self._quota.burst_s, now_s=self._clock()
        )

    def message(self, device: str, cost: float = 1.0) -> bool:
        """Whether it may send a message now."""
        rate = self._quota.messages_per_s
        return self._of(device).messages.take(
            cost, rate=rate, burst=rate * self._quota.burst_s, now_s=self._clock()
        )

    def session(self, device: str, session: str) -> bool:
        """Whether it may use that session beside those that it uses already."""
        now_s, sessions = self._clock(), self._of(device).sessions
        if session not in sessions:
            for name in [name for name, at_s in sessions.items() if at_s < now_s - self._quota.session_s]:
                del sessions[name]
            if len(sessions) >= self._quota.sessions:
                return False
        sessions[session] = now_s
        return True

    def answer(self, device: str) -> bool:
        """Whether to tell it that it is over its quota."""
        return self._of(device).answers.take(1, rate=ANSWERS_PER_S, burst=ANSWERS, now_s=self._clock())

    @property
    def devices(self) -> int:
        """That are remembered."""
        return len(self._uses)

    def _of(self, device: str) -> _Use:
        use = self._uses.get(device)
        if use is None:
            quota, now_s = self._quota, self._clock()
            use = self._uses[device] = _Use(
                messages=_Bucket(quota.messages_per_s * quota.burst_s, now_s),
                bytes=_Bucket(quota.bytes_per_s * quota.burst_s, now_s),
                answers=_Bucket(ANSWERS, now_s),
            )
            if len(self._uses) > MAX_DEVICES:
                self._uses.popitem(last=False)
        self._uses.move_to_end(device)
        return use
