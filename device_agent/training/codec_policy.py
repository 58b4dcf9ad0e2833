"""The choice of the codec that each message travels by, where the job says `auto` (docs/codecs.md).

A choice is made once a step and kept for ever: a step that is computed again, by this agent or by one
that starts after it, may have been committed already, and an older state of the store may bring that
back. So a choice is on the disk before the step's first message leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from device_agent.link.speed import LinkSpeed
from spliteasy.codecs import choose_codec
from spliteasy.codecs.packer import Place
from spliteasy.job.spec import LinkSpec

log = structlog.get_logger(__name__)
Way = Literal["up", "down"]
Values = tuple[Way, Place]
"""Activations or gradients, on their way up or down."""

MAX_CHANGES = 1000
"""The choices that are kept on the disk: a device rewinds by some checkpoints, never by so many changes."""


class CodecChooser(Protocol):
    """Picks one of the codecs that the job allows."""

    def choose(self, values: Values, nbytes: int) -> str:
        """The codec for values of so many bytes before packing."""
        ...

    def packed(self, values: Values, codec: str, *, before: int, after: int) -> None:
        """Values travelled under `codec` in `after` bytes instead of `before`."""
        ...


MakeChooser = Callable[[LinkSpec, LinkSpeed], CodecChooser]


class BySpeed:
    """Choose by the link's speed and by what each codec has made of the values so far."""

    def __init__(self, link: LinkSpec, speed: LinkSpeed) -> None:
        self._codecs = link.codecs
        self._speed = speed
        self._current: dict[Values, str] = {}
        self._ratios: dict[Values, dict[str, float]] = {}

    def choose(self, values: Values, nbytes: int) -> str:
        way, place = values
        allowed = self._codecs[place]
        if len(allowed) == 1:
            return allowed[0]
        rate = self._speed.up if way == "up" else self._speed.down
        current = self._current.get(values)
        chosen = choose_codec(
            allowed, nbytes=nbytes, rate=rate, current=current, ratios=self._ratios.get(values)
        )
        if chosen != current:
            log.info(
                "a codec was chosen", way=way, values=place, codec=chosen, bytes_per_s=rate and round(rate)
            )
            self._current[values] = chosen
        return chosen

    def packed(self, values: Values, codec: str, *, before: int, after: int) -> None:
        if before:
            self._ratios.setdefault(values, {})[codec] = after / before


class _Change(BaseModel):
    """The codecs that hold from step `step` on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    step: int
    codecs: dict[str, str]


class _Course(BaseModel):
    """All choices up to step `until`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    until: int = 0
    changes: list[_Change] = []


class StepChoices:
    """The codecs of each step."""

    def __init__(
        self,
        link: LinkSpec,
        chooser: CodecChooser,
        *,
        ahead: int,
        saved: bytes | None = None,
        save: Callable[[bytes], object] = lambda _: None,
    ) -> None:
        """`saved`: what `save` was given last. A choice is written down for `ahead` steps at a time; who
        starts again within them changes nothing before their end."""
        self._auto = link.auto
        self.chooser = chooser
        self._ahead = ahead
        self._save = save
        self._course = _parsed(saved)
        self._free = self._course.until + 1
        """The first step that was certainly never begun."""

    def at(self, step: int, nbytes: Mapping[Values, int]) -> dict[Values, str]:
        """The codecs of `step`, whose values have so many bytes; durable on return. Raises as `save` does."""
        if step >= self._free:
            self._choose(
                step, {_key(values): self.chooser.choose(values, nbytes[values]) for values in nbytes}
            )
            self._free = step + 1
        changes = self._course.changes
        codecs = next((change for change in reversed(changes) if change.step <= step), changes[0]).codecs
        return {values: codecs[_key(values)] for values in nbytes}

    def _choose(self, step: int, codecs: dict[str, str]) -> None:
        changes = [change for change in self._course.changes if change.step < step]
        changed = not changes or changes[-1].codecs != codecs
        if not changed and step <= self._course.until:
            return
        if changed:
            changes.append(_Change(step=step, codecs=codecs))
        # The first steps show what the link is like: little is promised before that is known.
        until = step + min(self._ahead, step) - 1
        self._course = _Course(until=until, changes=changes[-MAX_CHANGES:])
        if self._auto:
            self._save(self._course.model_dump_json().encode())


def _key(values: Values) -> str:
    return " ".join(values)


def _parsed(saved: bytes | None) -> _Course:
    try:
        return _Course.model_validate_json(saved) if saved is not None else _Course()
    except ValidationError:
        return _Course()  # as good as absent, as all files of a state folder
