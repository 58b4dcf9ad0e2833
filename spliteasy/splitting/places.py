"""The places where a model can be cut: names of module calls and their places in a trace."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from spliteasy.errors import CutError
from spliteasy.splitting.trace import ModuleCall, Trace

_CALL = re.compile(r"^(?P<path>[^#]+)(?:#(?P<call>[1-9][0-9]{0,5}))?$")


def name_of_call(call: ModuleCall, ends: dict[ModuleCall, int]) -> str:
    """Return the call's name as a user writes it: the plain path means the last call."""
    path, number = call
    return path if (path, number + 1) not in ends else f"{path}#{number}"


def cut_places(trace: Trace) -> list[tuple[str, int, tuple[str, ...]]]:
    """Return every place after a module call, in order, legal or not: name, position, other names."""
    ends = trace.ends
    by_end: dict[int, list[str]] = {}
    for call, end in ends.items():
        by_end.setdefault(end, []).append(name_of_call(call, ends))
    return [(names[0], end, tuple(names[1:])) for end, names in sorted(by_end.items())]


def find_call(cut: str, trace: Trace, paths: Sequence[str]) -> ModuleCall:
    """The module call that a cut names. Raises `CutError` that names the near ones."""
    ends = trace.ends
    match = _CALL.match(cut)
    path = match["path"] if match else cut
    calls = sorted(call for call in ends if call[0] == path)
    if match and match["call"] and calls:
        wanted = (path, int(match["call"]))
        if wanted in ends:
            return wanted
        raise CutError(f"module {path!r} is called {len(calls)} times, so there is no {cut!r}")
    if match and calls:
        return calls[-1]
    known = list(dict.fromkeys(call[0] for call in ends))
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.4) or known[:5]
    if path in paths:
        reason = f"module {path!r} runs no operator of its own, so the model can't be cut after it"
    else:
        reason = f"the model has no module {path!r}"
    raise CutError(
        reason, hint="did you mean " + ", ".join(repr(name) for name in near) + "?" if near else None
    )
