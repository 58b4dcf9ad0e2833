"""Let the gate look at the cuts that a plan would propose."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from spliteasy.errors import CutError
from spliteasy.job.spec import JobSpec
from spliteasy.planning.leaks import Judge, Leak
from spliteasy_cli.history.verdicts import GateVerdict, leaks_of, limits_of
from spliteasy_cli.leakage.gate import measure, verdict_of
from spliteasy_cli.leakage.outcome import keep, progress
from spliteasy_cli.support.runner import run

MOST = 6
"""Pairs of cuts that are measured for one plan."""


def judge_of(
    spec: JobSpec, root: Path | None, data: str | None, known: Collection[GateVerdict], folder: Path
) -> Judge:
    """Return what measures the cuts of a plan on `data`, and keeps each verdict in `folder`.

    Without data, and without limits, nothing is measured. `known`: verdicts that need not be found again.
    Raises CutError where so many cuts broke a limit that no further one is tried.
    """
    limits = spec.privacy.limits
    done = {each.cuts for each in known if set(limits_of(limits)) <= _measured(each)}

    def judge(cuts: tuple[str, ...]) -> Sequence[Leak]:
        if data is None or not limits_of(limits) or cuts in done:
            return ()
        if len(done) - before >= MOST:
            raise CutError(
                f"none of {MOST} cuts that were measured keeps to [privacy.limits]",
                hint="add a defence (docs/privacy.md), raise the limit, or run the command again to go on",
            )
        done.add(cuts)
        variant = spec.model_copy(update={"model": spec.model.model_copy(update={"cuts": cuts})})
        with progress(" | ".join(cuts)) as tell:
            measured = run(
                lambda stop: measure(variant, root, data, stop=stop, tell=tell),
                on_stop="stopping after the attack that is running",
            )
        if not measured.complete:
            raise KeyboardInterrupt
        keep(spec.name, measured, folder)
        return leaks_of(verdict_of(spec.name, measured), limits)

    before = len(done)
    return judge


def _measured(verdict: GateVerdict) -> set[str]:
    """Return the keys of limits that some attack had a score for."""
    return {row.measure for row in verdict.rows if row.measure is not None}
