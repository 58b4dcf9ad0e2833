"""The initial weights of a job's ends: the laws by which devices draw them, and those that are public.

A tensor of head or tail is *drawn* (the package has its law and no value), *public* (the package has its
value, so that anybody who has the job has it too), or a constant that tells nothing, as batch norm's ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import orjson
import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from torch import Tensor

from spliteasy.errors import PortableError
from spliteasy.graph import limits
from spliteasy.graph.document import DTYPES, Name, TensorSpec
from spliteasy.privacy import numbers
from spliteasy.privacy.law import Law, Step, check_law, run_law
from spliteasy.runtime.randomness import Key

MAX_BYTES = 16 << 20
"""JSON of a job's ends."""

Role = Literal["head", "tail"]
Reason = Annotated[str, StringConstraints(pattern=r"^[a-z-]{1,40}( [\w.]{1,80})?$")]
"""A key of `REASONS`; after a space, the operator it is about."""

REASONS: Mapping[str, str] = {
    "job": "the job says so ([privacy] ends)",
    "loaded": "loaded, or made outside torch's generators, so that there is no law to draw it by",
    "constant": "its law is a constant",
    "little-spread": "its law gives nearly the same weights each time",
    "looked-at": "the model's code looks at what it drew and goes on accordingly",
    "operator": "it is drawn by an operator that a law does not have",
    "folded": "drawn, but neither a parameter nor a buffer of the model: register it as a buffer",
    "not-repeated": "its law, run again under the job's seed, does not give the same bits",
    "too-large": "its law is too large",
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Tables = Annotated[dict[Name, int], Field(max_length=limits.TENSORS)]


class Ends(_Record):
    """The part `ends.json` of a job package."""

    format: Literal["spliteasy-ends"] = "spliteasy-ends"
    version: Literal[1] = 1
    law: Law = Law()
    drawn: Annotated[dict[Role, Tables], Field(max_length=2)] = {}
    """The law's view that each drawn tensor of a segment is, by main name."""
    public: Annotated[
        dict[Role, Annotated[dict[Name, Reason], Field(max_length=limits.TENSORS)]], Field(max_length=2)
    ] = {}
    """Weights whose initial values are in the package, and why."""

    def to_json(self) -> bytes:
        """Canonical: equal ends give equal bytes."""
        return orjson.dumps(
            self.model_dump(mode="json", exclude_defaults=True)
            | {"format": self.format, "version": self.version},
            option=orjson.OPT_SORT_KEYS,
        )

    def of(self, role: str) -> dict[str, int]:
        """The drawn tensors of a segment."""
        return dict(self.drawn.get(role, {}))  # type: ignore[call-overload]

    def public_of(self, role: str) -> dict[str, str]:
        """The public weights of a segment."""
        return dict(self.public.get(role, {}))  # type: ignore[call-overload]

    def named_public(self) -> list[tuple[str, str]]:
        """Name and reason of each public tensor, for a person."""
        return [
            (name, REASONS.get(reason.partition(" ")[0], reason))
            for table in self.public.values()
            for name, reason in sorted(table.items())
        ]


Drawn = dict[str, dict[str, Tensor]]
"""Initial tensors of a device's segments, by role and main name: those that differ from the package's."""


def ends_from_json(data: bytes) -> Ends:
    """Parse and check. Raises PortableError for what is no such part, and for a law out of bounds."""
    if len(data) > MAX_BYTES:
        raise PortableError(f"ends.json of {len(data)} bytes is over the limit of {MAX_BYTES}")
    try:
        ends = Ends.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise PortableError(f"ends.json is malformed at {where or 'the start'}: {first['msg']}") from None
    except (RecursionError, ValueError) as error:
        raise PortableError(f"ends.json is malformed: {type(error).__name__}") from None
    places = [place for table in ends.drawn.values() for place in table.values()]
    if any(place < 0 for place in places):
        raise PortableError("ends.json names a view below 0")
    check_law(ends.law, places)
    return ends


def placeholders(ends: Ends, role: str, table: Iterable[TensorSpec]) -> dict[str, Tensor]:
    """The drawn tensors of a segment as shapes without values: running it before they are drawn fails.

    Raises PortableError where a law's tensor is not the segment's.
    """
    specs = {spec.name: spec for spec in table}
    found = {}
    for name, place in ends.of(role).items():
        view = ends.law.views[place]
        dtype = ends.law.memory[view.memory].dtype
        spec = specs.get(name)
        if spec is None or (spec.dtype, spec.shape) != (dtype, view.shape):
            raise PortableError(f"the law of {role} tensor {name[:80]!r} is not of that tensor")
        found[name] = torch.empty_strided(view.shape, view.strides, dtype=DTYPES[dtype], device="meta")
    return found


def draw(ends: Ends, key: Key) -> Drawn:
    """The drawn tensors of head and tail, as `key` gives them. Raises PortableError for a faulty law."""

    def fill(place: int, step: Step, out: Tensor) -> None:
        numbers.fill(out, step.op, step.args, key.at("source", place))

    views = run_law(ends.law, fill)
    return {
        role: {name: views[place].clone(memory_format=torch.preserve_format) for name, place in table.items()}
        for role, table in ends.drawn.items()
    }


def perturb(tensor: Tensor, sigma: float, key: Key) -> Tensor:
    """x · (1 + σ·ξ) for each element x, with ξ standard normal."""
    noise = torch.empty(tensor.shape, dtype=torch.float64)
    numbers.fill(noise, "normal", (0.0, 1.0), key)
    value = tensor.detach()
    moved = (value.double() * (1.0 + sigma * noise)).to(value.dtype)
    return torch.empty_like(value).copy_(moved)
