"""Say of a trace that failed: in which module and line, what torch said, and what would do instead."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import fx, nn

from spliteasy.errors import JobError, PortableError

REMEDIES: tuple[tuple[str, str], ...] = (
    (r"data-dependent.*batchnorm\.py", "give batch norm a momentum: with momentum=None it counts in Python"),
    (
        r"pack_padded_sequence|PackedSequence|nn/utils/rnn\.py|argument 'size' failed.*nn/modules/rnn\.py",
        "run the recurrent layer over the padded batch, and mask what lies behind each length",
    ),
    (
        r"data-dependent.*torch/distributions/",
        "make the distribution with validate_args=False: a trace has no values to check",
    ),
    (r"nested_tensor|NestedTensor", "pass enable_nested_tensor=False: nested tensors can't travel"),
    (r"ScriptModule|ScriptFunction|torch\.jit", "use the Python module: torch.jit's can't be traced"),
    (r"dynamo-optimized|torch\.compile", "leave torch.compile out: the segments run as they are"),
    (
        r"data-dependent.*(\.item\(|\.tolist\(|\bint\(|\bfloat\()|aten\.item|_local_scalar_dense|\.tolist\(",
        "keep the value a tensor: as a Python number it would stay what it was in the trace",
    ),
    (r"numpy|\bnp\.", "use tensor operators: what numpy computes is not in the graph"),
    (r"data-dependent.*\bassert\b", "leave out the check of values, or make it in the data"),
    (
        r"(Constraints violated|specializ|constant).*(\.chunk\(|\.split\(|\.tensor_split\()",
        "cut a batch by slices, z[:n] and z[n:] with n = a.shape[0]: chunk and split count in Python",
    ),
    (
        r"Constraints violated|specializ|inferred to be a constant",
        "keep the batch size free: take it from x.shape, and write no number, list or loop of its length",
    ),
    (
        r"aten\.(nonzero|masked_select|_unique|unique|argwhere|bincount|repeat_interleave)|built-in function",
        "a shape must not depend on values: use torch.where, or multiply by the mask",
    ),
    (r"aten\.linalg_lstsq", "its rank is a number that depends on values: use torch.linalg.pinv(a) @ b"),
    (r"quantize", "train in floating point, and quantise what `spliteasy merge` gives"),
    (
        r"fake tensor in the exported program|_has_compatible_shallow_copy_type",
        "assign to a buffer itself, or write into it under torch.no_grad(), not by .data; torch.autograd.grad"
        " in the forward can't be traced",
    ),
    (r"DynamicCache|EncoderDecoderCache", "pass use_cache=False: a cache is no output"),
    (r"data-dependent", "choose with torch.where: Python sees no values, so neither `if` nor a loop can"),
)
"""Patterns of what failed (torch's sentence, the user's line, torch's files on the way) and what to do.

The first that fits counts.
"""

_LIBRARIES = (*torch.__path__, sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]))
_NOT_USERS = re.compile(r"^<|/(sympy|numpy|mpmath|importlib)/")
_NOISE = (
    r"\s*For more information.*",
    r"\s*\(unhinted:.*",
    r"\s*\(Size-like symbols:.*",
    r"\s*Caused by:.*",
    r"\s*See the documentation.*",
)
_LINE = re.compile(r'File "([^"]+)", line (\d+)[^\n]*\n([^\n]*)')

Frame = tuple[traceback.FrameSummary, nn.Module | None]
"""A frame, and the module whose method it is."""


def tracing_error(what: str, mode: str, model: nn.Module, error: Exception, pinned: str | None) -> JobError:
    """Return the error that tells a person why tracing failed. `pinned` is the user's line that fixed the
    batch size."""
    frames = list(_frames(error.__traceback__))
    said, place, module = one_sentence(error), _users_line(frames) or pinned, _module(frames, model)
    way = " ".join(frame.filename for frame, _ in frames[-20:])
    return JobError(
        f"torch.export can't trace {what} in {mode} mode: {_where(module, place)}{said}",
        hint=remedy(f"{said} {place or ''} {way}"),
    )


def with_place(error: PortableError | JobError, node: fx.Node) -> PortableError | JobError:
    """The same error, with the module and the user's line that the node comes from."""
    lines = _LINE.findall(node.meta.get("stack_trace") or "")
    places = [_told(file, int(line), code) for file, line, code in lines if _is_users(file)]
    modules = [
        path.partition("@")[0] for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path
    ]
    where = _where(modules[-1] if modules else None, places[-1] if places else None)
    hint = error.hint if isinstance(error, JobError) else remedy(error.message) or error.hint
    return type(error)(f"{where}{error.message}", hint=hint)


def remedy(text: str) -> str | None:
    """The first remedy whose pattern is in the text."""
    return next((told for pattern, told in REMEDIES if re.search(pattern, text, re.DOTALL)), None)


def one_sentence(error: BaseException) -> str:
    """The first line of what was raised, without torch's advice to its own developers."""
    line = (str(error).strip().splitlines() or [""])[0]
    for noise in _NOISE:
        line = re.sub(noise, "", line)
    line = re.split(r"(?<=[a-z0-9)>'])\.\s", line)[0]
    line = line.strip()[:300]
    return line if " " in line else f"{type(error).__name__} {line}".strip()


def users_line() -> str | None:
    """The line of the user's code that is running now."""
    return _users_line([(frame, None) for frame in traceback.extract_stack()])


def _frames(trace: TracebackType | None) -> Iterator[Frame]:
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        yield traceback.extract_tb(trace, limit=1)[0], owner if isinstance(owner, nn.Module) else None
        trace = trace.tb_next


def _is_users(file: str) -> bool:
    return not file.startswith(_LIBRARIES) and not _NOT_USERS.search(file)


def _users_line(frames: Sequence[Frame]) -> str | None:
    for frame, _ in reversed(frames):
        if _is_users(frame.filename):
            return _told(frame.filename, frame.lineno or 0, frame.line or "")
    return None


def _told(file: str, line: int, code: str) -> str:
    return f"`{code.strip()[:120]}` ({Path(file).name}, line {line})"


def _module(frames: Sequence[Frame], model: nn.Module) -> str | None:
    names = {module: name for name, module in model.named_modules() if name}
    return next((names[owner] for _, owner in reversed(frames) if owner in names), None)


def _where(module: str | None, place: str | None) -> str:
    parts = [part for part in (module and f"module {module}", place) if part]
    return f"{', '.join(parts)}: " if parts else ""
