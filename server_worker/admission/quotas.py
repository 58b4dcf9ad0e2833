"""Quotas bound how much of a worker one device may use: rates with a burst, and sessions at a time.

All counts are of this worker. What they are kept in is bounded too: of the devices, the one that was heard
of longest ago is forgotten first, when its buckets have long been full again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from spliteasy.runtime import worker_defaults as defaults

MAX_DEVICES = 10_000
OVERHEAD_BYTES = 256
"""A frame costs its sender this much beside its bytes: method, properties and headers on the wire."""

ANSWERS_PER_S, ANSWERS = 10.0, 20.0
"""BUSY is said so often; to a flood beyond it, silence: no answer may cost more than the question."""

FIRST_CREDIT, CREDIT = 64 << 10, 1 << 20
"""Small answers (what is here, what is missing) cost at most what was received, in bytes. What a device may
begin with, and save up."""

BURIED_PER_S, BURIED = 1.0, 50.0
BURIED_BYTES_PER_S, BURIED_BYTES = 256 << 10, 8 << 20
"""This many bytes of each device's dead letters are kept, and as many letters as above; the others are
dropped. The broker writes all of them to its disk, however few it keeps in the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceQuota:
    """The quota of one device at one worker. Bursts are in seconds of the rate."""

    messages_per_s: float = defaults.DEVICE_MESSAGES_PER_S
    frames_per_s: float = 4000.0
    """Whole messages or parts of them, however small."""
    bytes_per_s: float = defaults.DEVICE_MIB_PER_S * (1 << 20)
    burst_s: float = 2.0
    jobs: float = 10.0
    """Answers to GET_JOB at once: each is a whole job. One more every `job_s`."""
    job_s: float = 5.0
    sessions: int = defaults.DEVICE_SESSIONS
    """Jobs that it trains at a time: sessions that got a request within `session_s`."""
    session_s: float = 60.0


@dataclass(slots=True)
class _Bucket:
    level: float
    at_s: float

    def take(self, cost: float, *, rate: float, burst: float, now_s: float) -> bool:
        """Take the cost where there is enough, and return whether there was. A cost of more than half the
        burst passes when that half is there."""
        self.level = min(burst, self.level + (now_s - self.at_s) * rate)
        self.at_s = now_s
        if self.level < min(cost, burst / 2):
            return False
        self.level -= cost
        return True


@dataclass(slots=True)
class _Use:
    messages: _Bucket
    frames: _Bucket
    bytes: _Bucket
    answers: _Bucket
    jobs: _Bucket
    buried: _Bucket
    buried_bytes: _Bucket
    credit: float = FIRST_CREDIT
    """Bytes that small answers may cost."""
    sessions: dict[str, float] = field(default_factory=dict)
    """The moment at which each session got its last request."""


class Quotas:
    """Counts what each device uses; `clock` is in seconds."""

    def __init__(self, quota: DeviceQuota, clock: Callable[[], float]) -> None:
        self._quota = quota
        self._clock = clock
        self._uses: OrderedDict[str, _Use] = OrderedDict()

    def frame(self, device: str, frame_bytes: int) -> bool:
        """Return whether the device may send a frame of that size now. Every frame is counted, readable or
        not."""
        use, quota, now_s = self._of(device), self._quota, self._clock()
        cost = frame_bytes + OVERHEAD_BYTES
        use.credit = min(CREDIT, use.credit + cost)
        frames = use.frames.take(
            1, rate=quota.frames_per_s, burst=quota.frames_per_s * quota.burst_s, now_s=now_s
        )
        nbytes = use.bytes.take(
            cost, rate=quota.bytes_per_s, burst=quota.bytes_per_s * quota.burst_s, now_s=now_s
        )
        return frames and nbytes

    def work(self, device: str, nbytes: int) -> bool:
        """Return whether the worker may look through so many bytes for a device: that costs as much as
        sending."""
        rate = self._quota.bytes_per_s
        return self._of(device).bytes.take(
            nbytes, rate=rate, burst=rate * self._quota.burst_s, now_s=self._clock()
        )

    def message(self, device: str) -> bool:
        """Return whether it may send a message now."""
        rate = self._quota.messages_per_s
        return self._of(device).messages.take(
            1, rate=rate, burst=rate * self._quota.burst_s, now_s=self._clock()
        )

    def job(self, device: str) -> bool:
        """Return whether it gets a job's parts now."""
        quota = self._quota
        return self._of(device).jobs.take(1, rate=1 / quota.job_s, burst=quota.jobs, now_s=self._clock())

    def dead_letter(self, device: str, nbytes: int) -> bool:
        """Return whether a dead letter of the device of that size is kept."""
        use, now_s = self._of(device), self._clock()
        return use.buried.take(1, rate=BURIED_PER_S, burst=BURIED, now_s=now_s) and use.buried_bytes.take(
            nbytes, rate=BURIED_BYTES_PER_S, burst=BURIED_BYTES, now_s=now_s
        )

    def credit(self, device: str) -> float:
        """Return how many bytes small answers to the device may cost now."""
        return self._of(device).credit

    def afford(self, device: str, nbytes: int) -> bool:
        """Return whether a small answer of that size is sent: the device's credit pays for it."""
        use = self._of(device)
        if use.credit < nbytes:
            return False
        use.credit -= nbytes
        return True

    def session(self, device: str, session: str) -> bool:
        """Return whether the device may use that session beside those that it uses already."""
        now_s, sessions = self._clock(), self._of(device).sessions
        if session not in sessions:
            for name in [name for name, at_s in sessions.items() if at_s < now_s - self._quota.session_s]:
                del sessions[name]
            if len(sessions) >= self._quota.sessions:
                return False
        sessions[session] = now_s
        return True

    def answer(self, device: str) -> bool:
        """Return whether to tell the device that it is over its quota."""
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
                frames=_Bucket(quota.frames_per_s * quota.burst_s, now_s),
                bytes=_Bucket(quota.bytes_per_s * quota.burst_s, now_s),
                answers=_Bucket(ANSWERS, now_s),
                jobs=_Bucket(quota.jobs, now_s),
                buried=_Bucket(BURIED, now_s),
                buried_bytes=_Bucket(BURIED_BYTES, now_s),
            )
            if len(self._uses) > MAX_DEVICES:
                self._uses.popitem(last=False)
        self._uses.move_to_end(device)
        return use
