"""Say what of a job a browser can't train, from the list that the browser's agent ships with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spliteasy.graph.document import Document
    from spliteasy.job import Job, JobSpec

SHOWN = 8
LISTED = Path("web", "dist", "operators.json")


@cache
def supported() -> dict[str, frozenset[str]]:
    """Return the dtypes, and the operators by how they write, that a browser computes with."""
    return {key: frozenset(values) for key, values in _listed().items() if key != "refused"}


@cache
def _listed() -> dict[str, Any]:
    package = find_spec("device_agent")
    assert package is not None
    for folder in package.submodule_search_locations or ():
        path = Path(folder) / LISTED
        if path.exists():
            listed: dict[str, dict[str, Any]] = json.loads(path.read_text())
            return listed["browser"]
    raise FileNotFoundError(f"{LISTED} is not in the package device_agent")


def refused_settings(spec: JobSpec) -> tuple[str, ...]:
    """Return the settings of a job that a browser refuses, as a person reads them."""
    data = spec.model_dump(mode="json")
    return tuple(each["said"] for each in _listed()["refused"] if _is_set(data, each["key"], each["allowed"]))


def _is_set(data: Any, key: str, allowed: list[Any]) -> bool:
    for name in key.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return bool(data) and data not in allowed


def browser_gaps(job: Job) -> tuple[str, ...]:
    """Return what a job needs and a browser lacks: settings, and operators and dtypes of its parts."""
    from spliteasy.splitting.losses import PortableLoss

    segments = [job.head] if job.tail is None else [job.head, job.tail]
    documents = [segment.program.document for segment in segments]
    if job.tail is not None and isinstance(job.loss, PortableLoss):
        documents.append(job.loss.document)
    dtypes = {dtype for document in documents for dtype in _dtypes(document)}
    operators = {node.op for document in documents for node in _nodes(document)}
    return (*refused_settings(job.spec), *_forms(job), *gaps(operators, dtypes))


def _forms(job: Job) -> tuple[str, ...]:
    """Return what of the job's inputs and targets a browser does not take."""
    inputs, targets = job.signature.inputs, job.signature.targets
    counts = [("more than one input", len(inputs) != 1), ("more than one target", len(targets) != 1)]
    input_, target = inputs[0], targets[0]
    is_picture = len(input_.shape) == 3 and input_.shape[0] in (1, 3) and input_.dtype in ("float32", "uint8")
    is_row = len(input_.shape) == 1 and input_.dtype == "float32"
    is_class = target.dtype == "int64" and not target.shape
    is_number = target.dtype == "float32" and len(target.shape) <= 1
    forms = [
        (f"inputs of {input_.dtype}{list(input_.shape)}", not (is_picture or is_row)),
        (f"targets of {target.dtype}{list(target.shape)}", not (is_class or is_number)),
    ]
    return tuple(name for name, present in (*counts, *forms) if present)


def gaps(operators: Iterable[str], dtypes: Iterable[str] = ()) -> tuple[str, ...]:
    """Return those of the operators and dtypes that a browser lacks, as a person reads them."""
    known = supported()
    missing = set(operators) - known["operators"] - known["in_place"]
    short = (name.removeprefix("aten.").removesuffix(".default") for name in missing)
    return (*sorted(short), *sorted(set(dtypes) - known["dtypes"]))


def said(missing: tuple[str, ...]) -> str:
    """Return the sentence for a person."""
    names = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if missing[SHOWN:] else "")
    return f"devices with a browser alone can't train it, which lack {names}"


def _nodes(document: Document) -> Iterable[Any]:
    return (*document.train.nodes, *document.eval.nodes)


def _dtypes(document: Document) -> set[str]:
    graphs = (document.train, document.eval)
    values = (value.dtype for graph in graphs for value in (*graph.inputs, *graph.outputs))
    return {spec.dtype for spec in document.tensors} | {dtype for dtype in values if dtype is not None}
