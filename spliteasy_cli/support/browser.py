"""Say which parts of a job a browser can't compute, from the list that the browser's agent ships with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spliteasy.graph.document import Document
    from spliteasy.job import Job

SHOWN = 8
LISTED = Path("web", "dist", "operators.json")


@cache
def supported() -> dict[str, frozenset[str]]:
    """Return what a browser has: dtypes, operators by how they write, and what a package may need."""
    package = find_spec("device_agent")
    assert package is not None
    for folder in package.submodule_search_locations or ():
        path = Path(folder) / LISTED
        if path.exists():
            listed: dict[str, dict[str, list[str]]] = json.loads(path.read_text())
            return {key: frozenset(values) for key, values in listed["browser"].items()}
    raise FileNotFoundError(f"{LISTED} is not in the package device_agent")


def browser_gaps(job: Job) -> tuple[str, ...]:
    """Return the names of what the job needs and a browser lacks: operators and dtypes of head, tail and
    loss, and features of packages."""
    from spliteasy.splitting.losses import PortableLoss

    segments = [job.head] if job.tail is None else [job.head, job.tail]
    documents = [segment.program.document for segment in segments]
    if job.tail is not None and isinstance(job.loss, PortableLoss):
        documents.append(job.loss.document)
    dtypes = {dtype for document in documents for dtype in _dtypes(document)}
    operators = {node.op for document in documents for node in _nodes(document)}
    return (*gaps(operators, dtypes), *sorted(job.needs() - supported()["needs"]))


def gaps(operators: Iterable[str], dtypes: Iterable[str] = ()) -> tuple[str, ...]:
    """Return those of the operators and dtypes that a browser lacks, as a person reads them."""
    known = supported()
    missing = set(operators) - known["operators"] - known["in_place"]
    short = (name.removeprefix("aten.").removesuffix(".default") for name in missing)
    return (*sorted(short), *sorted(set(dtypes) - known["dtypes"]))


def said(missing: tuple[str, ...]) -> str:
    """Return the sentence for a person."""
    names = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if missing[SHOWN:] else "")
    return f"devices with a browser alone can't train it, whose engine lacks {names}"


def _nodes(document: Document) -> Iterable[Any]:
    return (*document.train.nodes, *document.eval.nodes)


def _dtypes(document: Document) -> set[str]:
    graphs = (document.train, document.eval)
    values = (value.dtype for graph in graphs for value in (*graph.inputs, *graph.outputs))
    return {spec.dtype for spec in document.tensors} | {dtype for dtype in values if dtype is not None}
