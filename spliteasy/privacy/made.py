"""Decide at submit which initial weights of a job's ends devices can draw, and which are public."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from spliteasy.errors import PortableError
from spliteasy.graph.document import TensorSpec
from spliteasy.graph.segment import Segment
from spliteasy.privacy.ends import Ends, Role, ends_from_json
from spliteasy.privacy.entropy import weak_weights, weights_of
from spliteasy.privacy.recording import NotALaw, Recording, repeat
from spliteasy.runtime.randomness import drawing, state_of


@dataclass(frozen=True, eq=False, slots=True)
class _End:
    """A tensor of head or tail: the model's own, and what the segment holds."""

    role: Role
    spec: TensorSpec
    original: Tensor
    value: Tensor


def make_ends(
    recording: Recording,
    segments: Mapping[Role, Segment],
    originals: Mapping[str, Tensor],
    *,
    public: bool = False,
) -> Ends:
    """Return what the package says of the ends. `originals` has the model's tensors, by main name.

    `public`: the job keeps nothing secret. A tensor is drawn only where its law, run again from the states
    that torch's generator had in the factory, gives its bits, and where the law leaves something to guess.
    """
    drawn: list[_End] = []
    reasons: dict[_End, str] = {}
    for role, segment in segments.items():
        values = segment.tensors()
        for spec in segment.program.document.tensors:
            end = _End(role, spec, originals[spec.name], values[spec.name])
            reason = _reason(recording, end, public)
            if reason is not None:
                reasons[end] = reason
            elif recording.is_random(end.original):
                drawn.append(end)
    for refuse in (_too_large, _not_repeated, _weak):
        refused = refuse(recording, drawn)
        reasons.update(refused)
        drawn = [end for end in drawn if end not in refused]
    return _ends(recording, drawn, reasons)


def _reason(recording: Recording, end: _End, public: bool) -> str | None:
    """Why the tensor is public; None where it is drawn, or nothing that anybody could use."""
    spec = end.spec
    matrix = spec.requires_grad and len(spec.shape) > 1
    if public:
        return "job" if spec.kind == "parameter" else None
    if recording.is_random(end.original):
        if spec.kind == "constant":
            return "folded"
        try:
            recording.check(end.original)
        except NotALaw as why:
            return str(why)
        return None
    if recording.is_given(end.original):
        alike = end.value.numel() > 0 and bool((end.value == end.value.flatten()[0]).all())
        return "loaded" if spec.kind == "parameter" and (matrix or not alike) else None
    return "constant" if matrix else None


def _ends(recording: Recording, drawn: Sequence[_End], reasons: Mapping[_End, str]) -> Ends:
    law, views, _ = recording.law([end.original for end in drawn])
    tables: dict[Role, dict[str, int]] = {}
    for end, view in zip(drawn, views, strict=True):
        tables.setdefault(end.role, {})[end.spec.name] = view
    public: dict[Role, dict[str, str]] = {}
    for end, reason in reasons.items():
        public.setdefault(end.role, {})[end.spec.name] = reason
    return Ends(law=law, drawn=tables, public=public)


def _too_large(recording: Recording, drawn: Sequence[_End]) -> dict[_End, str]:
    """All of them, where a device would refuse the law for its size."""
    try:
        ends_from_json(_ends(recording, drawn, {}).to_json())
    except (PortableError, ValidationError):
        return dict.fromkeys(drawn, "too-large")
    return {}


def _not_repeated(recording: Recording, drawn: Sequence[_End]) -> dict[_End, str]:
    """Those that the law as it travels does not give bit for bit."""
    _, places, states = recording.law([end.original for end in drawn])
    law = ends_from_json(_ends(recording, drawn, {}).to_json()).law
    with drawing(state_of(0)):
        views = repeat(law, states)
    return {
        end: "not-repeated"
        for end, place in zip(drawn, places, strict=True)
        if not _same(views[place], end.value)
    }


def _weak(recording: Recording, drawn: Sequence[_End]) -> dict[_End, str]:
    ends = _ends(recording, drawn, {})
    matrices = [
        weight
        for role in ("head", "tail")
        for weight in weights_of(role, [end.spec for end in drawn if end.role == role])
    ]
    weak = weak_weights(ends, matrices)
    return {end: "little-spread" for end in drawn if end.spec.name in weak}


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether shape, dimension order and bits are the same."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype or _strides(ours) != _strides(theirs):
        return False
    a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (ours, theirs.detach()))
    return torch.equal(a, b)


def _strides(tensor: Tensor) -> list[int]:
    """Those of a compact copy, of dimensions that have any: a tied or sliced tensor's own don't matter."""
    compact = tensor.clone(memory_format=torch.preserve_format)
    return [stride for stride, size in zip(compact.stride(), compact.shape, strict=True) if size > 1]
