"""Print the operators that no portable graph calls, as the table of docs/models.md.

`python -m benchmarks.harness.operators`
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from spliteasy.graph.operators import ATEN
from spliteasy.graph.refusals import KINDS, reason_of

SHOWN = 3


def all_operators() -> Iterator[tuple[str, Any]]:
    """Every operator of torch's own library, by its portable name."""
    for full in sorted(set(torch._C._dispatch_get_all_op_names())):
        library, _, rest = full.partition("::")
        base, _, overload = rest.partition(".")
        if library == "aten":
            overload = overload or "default"
            yield f"aten.{base}.{overload}", getattr(getattr(torch.ops.aten, base), overload)


def table() -> str:
    """The kinds of what is refused as Markdown: examples, why, and what to write instead."""
    found: dict[str, list[str]] = {kind.kind: [] for kind in KINDS}
    for name, overload in all_operators():
        kind = reason_of(name, overload)
        if name not in ATEN and kind is not None:
            base = name.split(".")[1]
            if base not in found[kind.kind]:
                found[kind.kind].append(base)
    lines = ["| an operator that | such as | why it is refused | instead |", "| --- | --- | --- | --- |"]
    for kind in KINDS:
        names = [base for base in found[kind.kind] if not base.startswith("_")] or found[kind.kind]
        shown = ", ".join(f"`{base}`" for base in names[:: -(-len(names) // SHOWN)])
        lines.append(f"| {kind.kind} | {shown} | {kind.why} | {kind.instead} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
