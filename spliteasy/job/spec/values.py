"""The kinds of values that keys of a job file take, and the base of its sections."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from spliteasy.codecs import codec_names, parse_codec
from spliteasy.errors import JobError

MAX_COUNT = 2**31 - 1
"""Upper bound of counts (batch size, steps, epochs): reads the same in every language."""
MAX_SEED = 2**53 - 1
MAX_LENGTH = 1 << 20
"""The length of samples is at most this, as their number in a batch is."""
ELEMENTWISE = ("fp32", "fp16", "bf16", "lossless")
"""Codecs in which no number depends on another sample's."""
AUTO = "auto"
TOP_LEVEL: set[str] = set()
"""The keys before the first section of a job file, which `job.py` fills in."""


def refuse(message: str) -> PydanticCustomError:
    """An error whose text is for the person who wrote the job file."""
    return PydanticCustomError("job", "{message}", {"message": message})


def unknown_key(section: type[BaseModel], key: str) -> PydanticCustomError:
    known = sorted(section.model_fields)
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    if near:
        message = f"unknown key, did you mean {' or '.join(near)}?"
    elif key in TOP_LEVEL:
        message = "unknown key here; it belongs at the top of the file, before the first [section]"
    else:
        message = f"unknown key; known here: {', '.join(known)}"
    return PydanticCustomError("unknown_key", "{message}", {"message": message, "key": key})


def only(*built: str, planned: tuple[str, ...] = ()) -> AfterValidator:
    """A choice of which only `built` works; names in `planned` are refused as not built yet."""

    def check(value: str) -> str:
        if value in built:
            return value
        if value.partition(":")[0] in planned:
            raise refuse(f"{value!r} is not built yet; use {' or '.join(map(repr, built))}")
        raise refuse(f"{value!r} is not known; use {' or '.join(map(repr, built))}")

    return AfterValidator(check)


def auto_or_cuts(value: Any) -> Any:
    """ "auto" is kept as no cuts at all, until the planner has named them."""
    if value == "auto":
        return ()
    if isinstance(value, tuple) and not value:
        raise refuse('name one or two modules, as in ["stem", "pool"], or "auto"')
    return value


def unique(names: tuple[str, ...]) -> tuple[str, ...]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise refuse(f"{name!r} is named twice")
        seen.add(name)
    return names


Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
REFERENCE = re.compile(r"[A-Za-z_][\w.]{0,149}:[A-Za-z_][\w.]{0,149}", re.ASCII)
Reference = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", max_length=300)]
"""`module:function` in the user's own files: resolved where the user runs a command, never elsewhere."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Names = Annotated[tuple[Name, ...], Field(min_length=1, max_length=16), AfterValidator(unique)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Steps = Annotated[int, Field(ge=0, le=MAX_COUNT)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _known_codec(name: str) -> str:
    if name == AUTO:
        raise refuse(f"'auto' belongs in activations and gradients; name {', '.join(codec_names())}")
    return _codec_or_auto(name)


def _codec_or_auto(name: str) -> str:
    if name == AUTO:
        return name
    try:
        return parse_codec(name).name
    except JobError as error:
        raise refuse(str(error)) from None


Codec = Annotated[str, AfterValidator(_known_codec)]
CodecOrAuto = Annotated[str, AfterValidator(_codec_or_auto)]


class Section(BaseModel):
    """Base of all sections: frozen, strict, unknown keys refused with the near ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        """Refuse unknown keys with a hint; arrays of TOML and JSON become the tuples of a frozen spec."""
        if not isinstance(data, dict):
            return data
        for key in data:
            if key not in cls.model_fields:
                raise unknown_key(cls, str(key))
        return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def parses(parse: Callable[[str], float]) -> AfterValidator:
    """A text that `parse` takes."""

    def check(text: str) -> str:
        try:
            parse(text)
        except JobError as error:
            raise refuse(str(error)) from None
        return text

    return AfterValidator(check)


Share = Annotated[float, Field(ge=0, le=1)]
