"""Other cuts of a job to measure: first cuts beside the job's second one, and the reverse."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from spliteasy.errors import CutError
from spliteasy.job.source import build_model, load_source
from spliteasy.job.spec import JobSpec
from spliteasy.splitting.split import split_traced

DEPTH = 2
"""Names of modules that are tried have so many parts at most."""

EACH = 3
"""Other places that are taken for each cut, spread over the network."""


def other_cuts(spec: JobSpec, root: Path | None) -> list[tuple[str, ...]]:
    """The job's own cuts first, then legal ones that differ in one of them. Raises JobError."""
    model, _, _ = build_model(spec, root)
    source = load_source(spec, root)
    names = [name for name, _ in model.named_modules() if name and name.count(".") < DEPTH]
    own = spec.model.cuts
    found = [own]
    places: set[bytes] = set()

    def legal(cuts: tuple[str, ...]) -> bool:
        """Return whether the model can be cut so, and this is another place than those before."""
        try:
            split = split_traced(source.traced, cuts, share_inputs=source.shared_inputs)
        except CutError:
            return False
        place = b"".join(segment.graph_json() for segment in split.segments)
        fresh = place not in places
        places.add(place)
        return fresh

    legal(own)
    for index in range(len(own)):
        variants = [(*own[:index], name, *own[index + 1 :]) for name in names if name not in own]
        found += _spread([cuts for cuts in variants if legal(cuts)])
    return found


def _spread(cuts: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    every = list(cuts)
    if len(every) <= EACH:
        return every
    return [every[round(i * (len(every) - 1) / (EACH - 1))] for i in range(EACH)]
