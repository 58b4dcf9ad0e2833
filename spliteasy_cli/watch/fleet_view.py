"""The rounds of a job whose devices train one model, as the store has them and as a person reads them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from spliteasy.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from server_worker.store import Store
    from spliteasy.fleet.record import Member, RoundRecord
    from spliteasy.job.spec import FleetSpec

SHOWN = 12
"""Characters of a digest that are shown."""


@dataclass(frozen=True, slots=True)
class FleetView:
    """A fleet as the store has it, at one moment."""

    name: str
    spec: FleetSpec
    records: Sequence[RoundRecord]
    members: Mapping[str, Member]
    means: Mapping[int, str]
    """Digests of the means that are kept, by round."""
    now: float
    seed: int
    """The job's, by which devices are drawn."""

    def mean_of(self, record: RoundRecord) -> str | None:
        """Return the digest of the mean that everybody goes on from after the round; None: the initial model,
        or it was not taken yet.
        """
        later = next((each for each in self.records if each.number == record.number + 1), None)
        return later.mean_before if later is not None else self.means.get(record.base)

    def accuracies(self) -> tuple[float, float] | None:
        """Return the least and the median accuracy of the common model, over the devices that say theirs."""
        told = [each.accuracy for each in self.members.values() if each.accuracy is not None]
        return (min(told), median(told)) if told else None

    def devices(self) -> list[dict[str, Any]]:
        """Return what each device is at, in the round under way."""
        newest = self.records[-1] if self.records else None
        cohort = {*newest.cohort, *newest.rest} if newest is not None else set()
        return [
            {
                "device": name,
                "state": self._state(newest, name, self.members.get(name)),
                "drawn": name in cohort,
                "accuracy": member.accuracy if (member := self.members.get(name)) is not None else None,
            }
            for name in sorted({*self.members, *cohort})
        ]

    def _state(self, newest: RoundRecord | None, name: str, member: Member | None) -> str:
        if newest is not None and name in newest.rest:
            return "waits for its windows"
        if newest is None or name not in newest.cohort:
            return "done" if member is not None and member.done else "waits for a round"
        if member is not None and member.round == newest.number + 1 and member.handed is not None:
            return "handed in"
        return "late" if self.now - newest.closed_at >= self.spec.deadline_s else "trains"


async def read_fleet(store: Store, job: str, *, last: int | None = None) -> FleetView:
    """Return what the store has of the fleet of a job, with its last records or all. Raises UserError where
    there is no such job with rounds.
    """
    from spliteasy.fleet.record import Member, RoundRecord
    from spliteasy.job.spec import JobSpec

    name, _, digest = job.partition("@")
    versions = (await store.job_versions()).get(name, ())
    whole = next((each for each in versions if each.startswith(digest)), None)
    stored = None if whole is None else await store.get_job(name, whole, wanted=lambda names: ["spec.json"])
    if stored is None:
        raise UserError(f"there is no job {job}", hint="see `spliteasy status` for those that were submitted")
    part = stored.parts.get("spec.json")
    whole_spec = None if part is None else JobSpec.model_validate_json(part)
    if whole_spec is None or not (spec := whole_spec.fleet).has_rounds:
        raise UserError(
            f"the devices of job {name} train alone: it has no rounds", hint='[fleet] mode = "splitfed"'
        )
    fleet_name = f"{name}@{stored.digest}"
    newest, after = await store.fleets.newest_round(fleet_name), -1
    if newest is not None and last is not None:
        after = RoundRecord.from_json(newest).number - last
    records = [RoundRecord.from_json(line) for line in await store.fleets.rounds(fleet_name, after=after)]
    members = {device: Member.from_json(x) for device, x in (await store.fleets.members(fleet_name)).items()}
    weights = await store.fleets.weights(fleet_name)
    means = {int(key[:-1]): digest for key, digest in weights.items() if key.endswith("/")}
    return FleetView(fleet_name, spec, records, members, means, await store.now(), whole_spec.seed)


async def resume_fleet(store: Store, view: FleetView) -> None:
    """Let a fleet that void rounds have paused begin its next round. Raises UserError where it is not paused,
    or nobody is there.
    """
    from server_worker.rounds.decision import next_record

    name = view.name.partition("@")[0]
    newest = view.records[-1] if view.records else None
    if newest is None or not newest.paused:
        raise UserError(f"the fleet of job {name} is not paused", hint="see `spliteasy fleet JOB`")
    due = next_record(
        newest,
        view.members,
        view.spec,
        seed=view.seed,
        now=view.now,
        may_expire=True,
        resumed=True,
        mean_before=view.means.get(newest.base),
    )
    if due is None:
        raise UserError(f"no device of job {name} is there to train", hint="start their agents")
    await store.fleets.append_round(view.name, due.to_json(), number=due.number, previous=newest.to_json())


def fleet_as_object(view: FleetView) -> dict[str, Any]:
    """Return the fleet for `--json`."""
    return {
        "fleet": view.name,
        "round": view.records[-1].number + 1 if view.records else 0,
        "paused": bool(view.records) and view.records[-1].paused,
        "deadline_s": view.spec.deadline_s,
        "accuracy": _least_and_median(view),
        "devices": view.devices(),
        "rounds": [
            {
                "round": record.number,
                "record": record.digest,
                "void": record.number > 0 and record.void,
                "participants": {name: x.samples for name, x in record.participants.items()},
                "samples": sum(x.samples for x in record.participants.values()),
                "drawn_for_next": list(record.cohort),
                "began_with": record.began,
                "mean": view.mean_of(record),
                "closed_at": record.closed_at,
            }
            for record in view.records
        ],
    }


def _least_and_median(view: FleetView) -> dict[str, float] | None:
    found = view.accuracies()
    return None if found is None else {"least": found[0], "median": found[1]}


def fleet_at_a_glance(view: FleetView) -> dict[str, Any]:
    """Return the fleet for the dashboard: the round under way, who is in it and who is late, and the last
    records.
    """
    newest = view.records[-1] if view.records else None
    devices = view.devices()

    def named(state: str) -> list[str]:
        return [each["device"] for each in devices if each["state"] == state]

    return {
        "job": view.name.partition("@")[0],
        "mode": view.spec.mode,
        "round": 0 if newest is None else newest.number + 1,
        "began_at": None if newest is None else newest.closed_at,
        "paused": newest is not None and newest.paused,
        "in": [] if newest is None else list(newest.cohort),
        "handed_in": named("handed in"),
        "late": named("late"),
        "accuracy": _least_and_median(view),
        "rounds": [
            {
                "round": record.number,
                "void": record.void,
                "took_part": len(record.participants),
                "absent": sorted(set(before.cohort) - set(record.participants)),
                "samples": sum(each.samples for each in record.participants.values()),
                "mean": (view.mean_of(record) or "")[:SHOWN],
                "closed_at": record.closed_at,
            }
            for before, record in zip(view.records, view.records[1:], strict=False)
        ][::-1],
    }


def show_fleet(view: FleetView, last: int) -> None:
    """Print the round under way, its devices, and the rounds before it."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not view.records:
        console.print(f"{view.name}: no round has begun; {len(view.members)} devices wait")
        return
    newest = view.records[-1]
    name = view.name[: view.name.index("@") + 1 + SHOWN]
    if newest.paused:
        console.print(
            f"{name}: paused, since {newest.voids} rounds in a row were void; let it go on with --resume"
        )
    elif not newest.cohort:
        console.print(f"{name}: round {newest.number} was the last so far; no device waits for another one")
    else:
        console.print(
            f"{name}: round {newest.number + 1} began {view.now - newest.closed_at:.0f} s ago and lasts "
            f"{view.spec.deadline_s:.0f} s at most"
        )
    if (found := view.accuracies()) is not None:
        console.print(f"accuracy on the devices' test data: {found[0]:.3f} at least, median {found[1]:.3f}")
    grid = Table("device", "state", "accuracy", title="Devices", title_justify="left")
    for each in view.devices():
        accuracy = each["accuracy"]
        grid.add_row(each["device"], each["state"], "–" if accuracy is None else f"{accuracy:.3f}")
    console.print(grid)
    rounds = Table(title="Rounds", title_justify="left")
    for column in ("round", "took part", "left out", "samples", "mean"):
        rounds.add_column(column, justify="right")
    for before, record in list(zip(view.records, view.records[1:], strict=False))[-last:]:
        absent = sorted(set(before.cohort) - set(record.participants))
        rounds.add_row(
            str(record.number),
            "void" if record.void else str(len(record.participants)),
            ", ".join(absent) or "–",
            str(sum(x.samples for x in record.participants.values())),
            (view.mean_of(record) or "not taken yet")[:SHOWN],
        )
    console.print(rounds)
