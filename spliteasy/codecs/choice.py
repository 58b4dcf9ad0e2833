"""`auto`: which of the codecs that a job allows suits a link, by how long a message takes under each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spliteasy.codecs.registry import parse_codec

ENTER, ENTER_SLACK_S = 1.1, 0.001
"""A codec is taken up while its message takes at most so much longer than under the fastest codec."""
KEEP, KEEP_SLACK_S = 1.4, 0.002
"""The codec in use stays while its message takes at most so much longer: estimates that waver by a
fifth change nothing."""


def choose_codec(
    allowed: Sequence[str],
    *,
    nbytes: int,
    rate: float | None,
    current: str | None = None,
    ratios: Mapping[str, float] | None = None,
) -> str:
    """The first of `allowed` that is about as fast as the fastest; the best liked ones come first.

    `nbytes`: of the tensors before packing. `rate`: bytes per second; None where it is not known yet, and
    the one that sends the least is taken: better a message that is less exact than one that takes minutes.
    `ratios`: packed bytes over `nbytes` where a codec has shown its own, else what is typical of it.
    """
    if rate is None:
        return current or min(allowed, key=lambda name: parse_codec(name).typical_ratio)
    seconds = {name: _seconds(name, nbytes, rate, (ratios or {}).get(name)) for name in allowed}
    fastest = min(seconds.values())
    entered, kept = fastest * ENTER + ENTER_SLACK_S, fastest * KEEP + KEEP_SLACK_S
    return next(name for name in allowed if seconds[name] <= (kept if name == current else entered))


def _seconds(name: str, nbytes: int, rate: float, ratio: float | None) -> float:
    """Predict the seconds that encoding, sending and decoding take."""
    codec = parse_codec(name)
    return nbytes * ((codec.typical_ratio if ratio is None else ratio) / rate + codec.seconds_per_byte)
