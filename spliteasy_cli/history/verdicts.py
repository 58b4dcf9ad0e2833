"""The gate's last verdict on each version of a job, as files that other commands read.

DIR/JOB@DIGEST.json holds what `spliteasy leakage` found at the job's own cuts: each attack with its score,
chance and limit, and the number of scores beyond a limit. Commands that show a job show this beside it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spliteasy.errors import UserError
from spliteasy.planning.leaks import SIDES, Leak
from spliteasy.privacy.limits import LIMIT_KEYS, LimitKey, passes
from spliteasy.runtime.durable_files import write_file

if TYPE_CHECKING:
    from spliteasy.job.spec import JobSpec, LimitsSpec

SHORT_DIGEST = 12
NONE_YET = "no verdict yet"
NAMED = 2
"""Attacks that are named one by one where a run played so few."""

Judgement = Literal["ok", "violation", "no limit", "not tried"]


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class VerdictRow(_Kept):
    """One attack by one adversary, and one of its scores; without scores where it could not be tried."""

    adversary: str
    attack: str
    verdict: Judgement
    measure: str | None = None
    score: float | None = None
    chance: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    why_not: str | None = None


class GateVerdict(_Kept):
    """The result of one run of the gate on one version of a job."""

    job: str
    digest: str = Field(pattern="[0-9a-f]{64}")
    at: float
    """Unix seconds."""
    cuts: tuple[str, ...]
    settings: str = ""
    """A digest of the job file's settings but for the cuts: what the verdicts on two cuts have alike."""
    steps: int
    """Steps that were recorded."""
    limits: dict[str, float]
    rows: tuple[VerdictRow, ...]

    @property
    def violations(self) -> int:
        return sum(row.verdict == "violation" for row in self.rows)

    @property
    def games(self) -> frozenset[tuple[str, str]]:
        """Return who attacked how."""
        return frozenset((row.adversary, row.attack) for row in self.rows)

    def line(self, limits: Mapping[str, float] | None = None) -> str:
        """Return the verdict in one line. `limits`: those that the job file has now."""
        day = time.strftime("%Y-%m-%d", time.gmtime(self.at))
        tried = sorted({row.attack for row in self.rows if row.score is not None})
        named = " and ".join(tried) if 0 < len(tried) <= NAMED else f"{len(tried)} attacks"
        by = ", ".join(sorted({row.adversary for row in self.rows}))
        bounds = "" if self.limits else ", no limit was set"
        if limits is not None and dict(limits) != self.limits:
            bounds = ", under other limits than the job file has now"
        return f"violations={self.violations} on {day} ({named} by {by}{bounds})"


def keep_verdict(folder: Path, verdict: GateVerdict) -> bool:
    """Write the verdict, unless one is kept that says more: of the same attacks and others.

    Return whether it was written. Raises UserError.
    """
    path = folder / f"{verdict.job}@{verdict.digest[:SHORT_DIGEST]}.json"
    if path.exists() and verdict.games < _read(path).games:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, verdict.model_dump_json(indent=1).encode() + b"\n")
    except OSError as error:
        raise UserError(
            f"the gate's verdict can't be written to {folder}: {error.strerror}",
            hint="name another folder with --verdicts",
        ) from None
    return True


def read_verdicts(folder: Path) -> dict[str, GateVerdict]:
    """Return the kept verdicts by digest; none where the folder does not exist. Raises UserError."""
    found = (_read(path) for path in sorted(folder.glob("*@*.json")))
    return {verdict.digest: verdict for verdict in found}


def line_of(
    verdicts: Mapping[str, GateVerdict], digest: str, limits: Mapping[str, float] | None = None
) -> str:
    """Return what is known of a version, in one line."""
    return verdicts[digest].line(limits) if digest in verdicts else NONE_YET


def settings_of(spec: JobSpec) -> str:
    """Return a digest of what a job file says beside its cuts, the plan for them, and the limits."""
    apart: Any = {"model": {"cuts"}, "plan": True, "privacy": {"limits"}}
    document = spec.model_dump(mode="json", exclude=apart)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def leaks_of(verdict: GateVerdict, limits: LimitsSpec) -> list[Leak]:
    """Return the limits that did not hold: the worst attack of each measure."""
    worst: dict[LimitKey, VerdictRow] = {}
    for row in verdict.rows:
        for key in LIMIT_KEYS:
            bound = getattr(limits, key)
            if row.measure != key or row.score is None or bound is None or passes(key, row.score, bound):
                continue
            known = worst.get(key)
            if known is None or known.score is None or not passes(key, known.score, row.score):
                worst[key] = row
    return [
        Leak(
            cuts=verdict.cuts,
            side=SIDES.get(key, "pair"),
            why=f"{key} {row.score:.3g} by {row.attack}, limit {getattr(limits, key):g}",
        )
        for key, row in worst.items()
    ]


def newest_of(verdicts: Iterable[GateVerdict], job: str) -> GateVerdict | None:
    """Return the last verdict on any version of the job."""
    return max((each for each in verdicts if each.job == job), key=lambda each: each.at, default=None)


def _read(path: Path) -> GateVerdict:
    try:
        return GateVerdict.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no verdict of this version"
        raise UserError(
            f"the gate's verdict in {path} can't be read: {reason}",
            hint="delete the file and run spliteasy leakage again",
        ) from None


def limits_of(section: LimitsSpec) -> dict[str, float]:
    """Return the bounds that a job file's [privacy.limits] sets."""
    return {name: bound for name, bound in section.model_dump().items() if bound is not None}
