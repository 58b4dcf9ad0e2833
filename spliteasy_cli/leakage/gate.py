"""The gate: record a training of a job, play attacks on the record, hold the scores against the limits.

`measure` is what `spliteasy leakage` runs; tests and benchmarks call it on variants of a job:

    spec = load_job_file("job.toml")
    rows = await measure(spec, root, data, attacks=["tail-tracking"])
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from device_agent.training.data import DeviceData
from spliteasy.errors import UserError
from spliteasy.job import Job, JobSpec
from spliteasy.job.package import manifest_of
from spliteasy.job.spec import FleetSpec, LimitsSpec
from spliteasy.privacy.attacks import ATTACKS, FSHA, Attack
from spliteasy.privacy.guesses import InputGuess, Score
from spliteasy.privacy.limits import passes
from spliteasy.privacy.record import Adversary, Hijacker
from spliteasy_cli.history.verdicts import GateVerdict, Judgement, VerdictRow, limits_of, settings_of
from spliteasy_cli.leakage.recorder import STEPS, Recording, record, view_of
from spliteasy_cli.leakage.sample import draw_sample

NAME_ROOM = 55
"""Characters of the job's name that its copy for the recording keeps."""

Tell = Callable[[str, int, int], None]
"""A function that is told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One attack by one adversary at one pair of cuts, and one of its scores."""

    cuts: tuple[str, ...]
    adversary: Adversary
    attack: str
    score: Score | None
    """None where the attack can't be tried."""
    limit: float | None = None
    why_not: str | None = None
    reconstruction: InputGuess | None = None

    @property
    def verdict(self) -> Judgement:
        if self.score is None:
            return "not tried"
        if self.limit is None:
            return "no limit"
        return "ok" if passes(self.score.limit, self.score.value, self.limit) else "violation"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Measured:
    """The result of `measure` at one pair of cuts."""

    rows: tuple[Row, ...]
    digest: str
    """The version of the job that was measured."""
    settings: str
    """The digest of its settings but for the cuts."""
    limits: LimitsSpec
    recording: Recording
    complete: bool
    """False where it was stopped before the last attack."""

    @property
    def violations(self) -> int:
        return sum(row.verdict == "violation" for row in self.rows)


def attacks_named(names: Sequence[str]) -> tuple[Attack, ...]:
    """The attacks of these names, all where there are none. Raises UserError."""
    known = {attack.name: attack for attack in ATTACKS}
    for name in names:
        if name not in known:
            raise UserError(f"there is no attack {name!r}", hint=f"known are {', '.join(known)}")
    return tuple(attack for attack in ATTACKS if not names or attack.name in names)


async def measure(
    spec: JobSpec,
    root: Path | None,
    data: str | DeviceData,
    *,
    adversaries: Sequence[Adversary] = (Adversary.WORKER,),
    attacks: Sequence[str] = (),
    steps: int = STEPS,
    seed: int = 0,
    limits: LimitsSpec | None = None,
    sealed: bool = False,
    stop: asyncio.Event | None = None,
    tell: Tell = lambda _what, _done, _all: None,
) -> Measured:
    """Record `steps` steps of the job on `data`, and play the attacks.

    `limits`: in place of the job's own. `sealed`: seal the store, as the local stack does. Setting `stop`
    ends the recording after its current step, and the attacks after the current one. Runs the user's model
    code. Raises SplitEasyError.
    """
    measured_job = await asyncio.to_thread(Job.create, spec, root)
    job = await asyncio.to_thread(_copy_to_record, measured_job, root)
    bounds = limits or spec.privacy.limits
    chosen = attacks_named(attacks)
    sample = draw_sample(job, data, root, seed=seed)

    async def recorded(what: str, hijacker: Hijacker | None = None) -> Recording:
        with TemporaryDirectory(prefix="spliteasy-leakage-") as folder:
            return await record(
                job,
                sample,
                Path(folder),
                steps=steps,
                hijacker=hijacker,
                sealed=sealed,
                stop=stop,
                tell=lambda step, last: tell(what, step, last),
            )

    recording = await recorded("recording a training")
    hijacked: Recording | None = None
    complete = False
    games = [(who, attack) for who in adversaries for attack in chosen if who in attack.adversaries]
    rows = [_blind(job, who) for who in adversaries if who not in {player for player, _ in games}]
    for number, (who, attack) in enumerate(games):
        if stop is not None and stop.is_set():
            break
        tell(attack.name, number, len(games))
        played: Recording = recording
        if who is Adversary.ACTIVE:
            if hijacked is None and FSHA.refuses(view := view_of(recording, who)) is None:
                hijacker = await asyncio.to_thread(FSHA.hijacker, replace(view, steps=()))
                hijacked = await recorded("recording a hijacked training", hijacker)
            if hijacked is None:
                rows.append(_not_tried(recording, who, attack, FSHA.refuses(view) or ""))
                continue
            played = hijacked
        rows += await asyncio.to_thread(_play, played, who, attack, bounds)
    else:
        complete = True
    return Measured(
        rows=tuple(rows),
        digest=measured_job.digest,
        settings=settings_of(measured_job.spec),
        limits=bounds,
        recording=recording,
        complete=complete,
    )


def _copy_to_record(job: Job, root: Path | None) -> Job:
    """The same job under another name, trained by one device and evaluated after every epoch."""
    alone = _alone(job.spec)
    often = alone.evaluation.model_copy(update={"every_epochs": 1})
    name = f"{alone.name[:NAME_ROOM]}-leakage"
    spec = alone.model_copy(update={"name": name, "evaluation": often})
    if alone.privacy.ends != job.spec.privacy.ends:
        return Job.create(spec, root)
    parts = {**job.parts, "spec.json": spec.to_json()}
    copy = Job.from_parts(manifest_of(name, parts), parts)
    return Job.from_parts(manifest_of(name, parts, needs=copy.needs()), parts)


def verdict_of(job: str, measured: Measured) -> GateVerdict:
    """Return what is kept of a run of the gate on that job."""
    return GateVerdict(
        job=job,
        digest=measured.digest,
        at=time.time(),
        cuts=measured.recording.job.spec.model.cuts,
        settings=measured.settings,
        steps=len(measured.recording.steps),
        limits=limits_of(measured.limits),
        rows=tuple(_kept(row) for row in measured.rows),
    )


def _kept(row: Row) -> VerdictRow:
    score = row.score
    if score is None:
        return VerdictRow(
            adversary=row.adversary, attack=row.attack, verdict=row.verdict, why_not=row.why_not
        )
    return VerdictRow(
        adversary=row.adversary,
        attack=row.attack,
        verdict=row.verdict,
        measure=score.limit,
        score=score.value,
        chance=score.chance,
        low=score.low,
        high=score.high,
        limit=row.limit,
    )


def _alone(spec: JobSpec) -> JobSpec:
    """Return the job as one device of a fleet trains it: an adversary sees the same kinds of messages of
    each.

    Where the ends leave the devices in the open, everybody on the way has them at each round, as they have
    public ones from the beginning.
    """
    fleet = spec.fleet
    if not fleet.has_rounds:
        return spec
    in_the_open = fleet.ends_leave and not fleet.seals
    privacy = spec.privacy.model_copy(update={"ends": "public"}) if in_the_open else spec.privacy
    return spec.model_copy(update={"fleet": FleetSpec(), "share_ends": False, "privacy": privacy})


def _blind(job: Job, who: Adversary) -> Row:
    """An adversary whom none of the attacks is for."""
    why = (
        "no message of this device reaches it" if who is Adversary.MEMBER else "none of these attacks is its"
    )
    return Row(cuts=job.spec.model.cuts, adversary=who, attack="none", score=None, why_not=why)


def _not_tried(recording: Recording, who: Adversary, attack: Attack, why_not: str) -> Row:
    cuts = recording.job.spec.model.cuts
    return Row(cuts=cuts, adversary=who, attack=attack.name, score=None, why_not=why_not)


def _play(recording: Recording, who: Adversary, attack: Attack, limits: LimitsSpec) -> list[Row]:
    cuts, view = recording.job.spec.model.cuts, view_of(recording, who)
    nothing = None if view.steps else "it sees nothing of this training"
    why_not = nothing or attack.refuses(view)
    if why_not is not None:
        return [_not_tried(recording, who, attack, why_not)]
    guess = attack.run(view)
    return [
        Row(
            cuts=cuts,
            adversary=who,
            attack=attack.name,
            score=score,
            limit=getattr(limits, score.limit),
            reconstruction=guess if isinstance(guess, InputGuess) else None,
        )
        for score in guess.scores(recording.truth)
    ]


TRACKING = ("tail-tracking", "head-tracking")
SHORT_STEPS = 24


async def short_gate(
    spec: JobSpec, root: Path | None, data: str | DeviceData, *, stop: asyncio.Event | None = None
) -> Measured:
    """Return what a worker recovers of labels and inputs by following the ends of the first steps. It takes
    some seconds."""
    return await measure(spec, root, data, attacks=TRACKING, steps=SHORT_STEPS, stop=stop)


def told(rows: Sequence[Row]) -> list[str]:
    """One line for labels and one for inputs, of what `short_gate` found."""
    lines = []
    for row in rows:
        if row.score is None:
            lines.append(f"{row.attack}: not tried: {row.why_not}")
        elif row.score.limit == "label_recovery":
            lines.append(
                f"labels: a worker that follows the tail recovers {row.score.value:.4f} of them "
                f"(guessing: {row.score.chance:.4f})"
            )
        elif row.score.limit == "input_mse":
            lines.append(
                f"inputs: a worker that follows the head computes them with a mean squared error of "
                f"{row.score.value:.4f} (guessing the mean: {row.score.chance:.4f})"
            )
    return lines
