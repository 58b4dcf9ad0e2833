"""`spliteasy plan`: where to cut a job's model, by measurement."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spliteasy.runtime.readable import size
from spliteasy.runtime.units import parse_duration, parse_rate, parse_size
from spliteasy_cli.commands.submit import JobFile
from spliteasy_cli.options.threads import DEFAULT_THREADS, ThreadsOption, torch_threads
from spliteasy_cli.options.verdicts import DEFAULT_VERDICTS, VerdictsOption
from spliteasy_cli.support.log_setup import set_up_logging

if TYPE_CHECKING:
    from spliteasy.job import JobSpec
    from spliteasy.planning.choice import Cut
    from spliteasy.planning.planner import CutPlan
    from spliteasy_cli.history.verdicts import GateVerdict

SHOWN = 12
WIDTH = 150
"""Columns of the table where no terminal says its width."""

_COLUMN = {
    "device_memory": "memory",
    "min_head_layers": "layers",
    "min_tail_layers": "secrecy of labels",
    "max_input_correlation": "correlation",
    "disguise": "secrecy of inputs",
    "limits": "limits",
}
"""The column of the table for each constraint."""
AS_IN_PLAN = "by [plan], or"


UplinkOption = Annotated[
    str | None,
    typer.Option("--uplink", help="The rate from the device.", show_default=f"{AS_IN_PLAN} 20mbit"),
]
DownlinkOption = Annotated[
    str | None,
    typer.Option("--downlink", help="The rate to the device.", show_default=f"{AS_IN_PLAN} 50mbit"),
]
RttOption = Annotated[
    str | None, typer.Option("--rtt", help="The round trip of the link.", show_default=f"{AS_IN_PLAN} 50ms")
]
DeviceSpeedOption = Annotated[
    float | None,
    typer.Option(
        "--device-speed",
        min=1e-6,
        help="The device's speed, where this machine's is 1.",
        show_default=f"{AS_IN_PLAN} 1",
    ),
]
ServerSpeedOption = Annotated[
    float | None,
    typer.Option(
        "--server-speed",
        min=1e-6,
        help="A worker's speed, where this machine's is 1.",
        show_default=f"{AS_IN_PLAN} 1",
    ),
]
DeviceMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--device-memory",
        help="The memory that a step may take on the device, such as 512mb.",
        show_default="by [plan]",
    ),
]
CodecOption = Annotated[
    str | None,
    typer.Option("--codec", help="The codec that packs the tensors.", show_default="by the job's [link]"),
]
MinHeadLayersOption = Annotated[
    int | None,
    typer.Option(
        "--min-head-layers",
        min=0,
        help="Keep at least so many modules with weights on the device.",
        show_default="by [plan]",
    ),
]
MaxCorrelationOption = Annotated[
    float | None,
    typer.Option(
        "--max-input-correlation",
        min=0.0,
        max=1.0,
        help="Allow at most this distance correlation between inputs and what the head sends.",
        show_default="by [plan]",
    ),
]
SampleOption = Annotated[
    str | None,
    typer.Option(
        "--sample",
        metavar="MODULE:FUNCTION",
        help="A function that returns (inputs, targets) as devices have them.",
        show_default="model.example",
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        help="The file that `spliteasy profile` wrote on the device. Options win over it.",
        show_default=False,
    ),
]


DataOption = Annotated[
    str | None,
    typer.Option(
        help="The devices' data, as `train` takes it: measure what the proposed cut tells, by the gate.",
        show_default="what the gate found before is looked up",
    ),
]


def plan(
    context: typer.Context,
    job_file: JobFile,
    uplink: UplinkOption = None,
    downlink: DownlinkOption = None,
    rtt: RttOption = None,
    device_speed: DeviceSpeedOption = None,
    server_speed: ServerSpeedOption = None,
    device_memory: DeviceMemoryOption = None,
    codec: CodecOption = None,
    min_head_layers: MinHeadLayersOption = None,
    max_input_correlation: MaxCorrelationOption = None,
    sample: SampleOption = None,
    profile: ProfileOption = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file for the picture.")] = Path(
        "plan.png"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    every: Annotated[bool, typer.Option("--all", help=f"Show every place, not the best {SHOWN}.")] = False,
    data: DataOption = None,
    verdicts: VerdictsOption = DEFAULT_VERDICTS,
    threads: ThreadsOption = DEFAULT_THREADS,
) -> None:
    """List the legal cuts with what they cost, and mark the best for a device and its link.

    The model's operators are timed here; the cuts' bytes, parameters and memory are counted. With two
    cuts each line is the best second cut for its first one. A cut at which the gate found more than
    [privacy.limits] allows is not proposed, nor one with as few layers on that side; with --data each cut
    that would be proposed is measured first. Imports your model's code.
    """
    set_up_logging(context, "warning")
    given = {
        "uplink": uplink,
        "downlink": downlink,
        "rtt": rtt,
        "device_speed": device_speed,
        "server_speed": server_speed,
        "device_memory": device_memory,
        "min_head_layers": min_head_layers,
        "max_input_correlation": max_input_correlation,
        "sample": sample,
    }
    check_units(uplink, downlink, rtt, device_memory)
    from spliteasy.job import load_job_file
    from spliteasy.planning.planner import plan_job
    from spliteasy.planning.profile import read_profile
    from spliteasy.runtime.user_code import project_root
    from spliteasy_cli.history.verdicts import leaks_of, limits_of, newest_of, read_verdicts, settings_of
    from spliteasy_cli.leakage.judge import judge_of

    spec, root = with_settings(load_job_file(job_file), given, codec), project_root(job_file)
    device = read_profile(profile) if profile is not None else None
    limits = spec.privacy.limits
    kept = read_verdicts(verdicts).values()
    mine = [each for each in kept if each.job == spec.name and each.settings == settings_of(spec)]
    with torch_threads(threads):
        found = plan_job(
            spec,
            root,
            profile=device,
            leaks=[leak for each in mine for leak in leaks_of(each, limits)],
            judge=judge_of(spec, root, data, mine, verdicts),
        )
    if as_json:
        typer.echo(json.dumps(as_document(found), indent=1))
    else:
        show(found, every=every)
        newest = newest_of(read_verdicts(verdicts).values(), spec.name)  # one may be of just now
        typer.echo(_gate(newest, limits_of(limits)))
    _draw(found, output)


def _gate(verdict: GateVerdict | None, limits: dict[str, float]) -> str:
    """Return what the gate said last of this job, and at which cuts."""
    if verdict is None:
        return "gate: no verdict yet"
    version = f"{verdict.job}@{verdict.digest[:12]}, cut: {' | '.join(verdict.cuts)}"
    return f"gate: {verdict.line(limits)} for {version}"


def check_units(uplink: str | None, downlink: str | None, rtt: str | None, memory: str | None) -> None:
    """Raises JobError that names the option, before anything takes time."""
    for option, rate in (("--uplink", uplink), ("--downlink", downlink)):
        if rate is not None:
            parse_rate(rate, option)
    if rtt is not None:
        parse_duration(rtt, "--rtt")
    if memory is not None:
        parse_size(memory, "--device-memory")


def with_settings(spec: JobSpec, given: dict[str, Any], codec: str | None) -> JobSpec:
    """The job with the options in place of what its `[plan]` and `[link]` say. Raises JobError."""
    from spliteasy.job import parse_job

    data = spec.model_dump(exclude_unset=True)
    data["plan"] = {**data.get("plan", {}), **{key: v for key, v in given.items() if v is not None}}
    if spec.model.auto:
        data["model"]["cuts"] = "auto"
    if codec is not None:
        chunk = {key: value for key, value in data.get("link", {}).items() if key != "allow"}
        data["link"] = {**chunk, "activations": codec, "gradients": codec}
    return parse_job(data, source="the options")


def as_document(found: CutPlan) -> dict[str, Any]:
    """Return all numbers of the plan, for programs."""
    from spliteasy_cli.support.browser import gaps, refused_settings

    def cut(row: Cut | None) -> dict[str, Any] | None:
        return dataclasses.asdict(row) if row is not None else None

    return {
        "job": found.spec.name,
        "batch": found.costs.batch,
        "measured_batch": found.costs.measured_batch,
        "unsplit_step_s": found.costs.step_s,
        "codecs": [found.spec.link.activations, found.spec.link.gradients],
        "conditions": dataclasses.asdict(found.conditions),
        "constraints": dataclasses.asdict(found.constraints),
        "best": cut(found.best),
        "own": cut(found.own),
        "cuts": [cut(row) for row in found.rows],
        "browser_lacks": [*refused_settings(found.spec), *gaps(found.operators)],
        "notes": list(found.notes),
    }


def show(found: CutPlan, *, every: bool) -> None:
    """Print the table, along the depth, and what to write into the job file."""
    from rich.console import Console
    from rich.table import Table

    from spliteasy.planning.planner import names_of
    from spliteasy_cli.support.browser import gaps, refused_settings, said

    rows = list(found.rows)
    if not every:
        best = sorted(rows, key=lambda row: (bool(row.violates), row.step_s))[:SHOWN]
        rows = [row for row in rows if row in best]
    if found.own is not None and found.own.cuts not in [row.cuts for row in rows]:
        rows.append(found.own)
    grid = Table(title=_title(found), title_justify="left", caption_justify="left")
    grid.add_column("cut after", overflow="fold")
    numbers = ("layers", "up", "down", "parameters", "memory", "correlation")
    for column in (*numbers, "device", "server", "link", "step"):
        grid.add_column(column, justify="right", no_wrap=True)
    grid.add_column("", overflow="fold")
    for row in rows:
        grid.add_row(*_cells(row), _mark(found, row), style="bold" if row.cuts == found.best.cuts else None)
    if len(rows) < len(found.rows):
        grid.caption = f"the best of {len(found.rows)} places; --all shows them all"
    console = Console()
    Console(width=console.width if console.is_terminal else WIDTH).print(grid)
    for note in found.notes:
        typer.echo(f"note: {note}")
    if missing := (*refused_settings(found.spec), *gaps(found.operators)):
        typer.echo(f"note: {said(missing)}")
    typer.echo(f"cuts = {names_of(found.best.cuts)}   predicted {_ms(found.best.step_s)} a step")
    if found.own is not None and found.own.cuts != found.best.cuts:
        times = found.own.step_s / found.best.step_s
        typer.echo(f"the job's own cuts take {_ms(found.own.step_s)}, {times:.2f} times as long")


def _title(found: CutPlan) -> str:
    conditions, costs = found.conditions, found.costs
    speeds = {f"{speed:.3g}" for speed in conditions.device_speed}
    scaled = "" if costs.measured_batch == costs.batch else f", timed with {costs.measured_batch}"
    return (
        f"{found.spec.name}: {costs.batch} samples a step{scaled}; up {conditions.up_bytes_s * 8 / 1e6:g}"
        f" and down {conditions.down_bytes_s * 8 / 1e6:g} Mbit/s, round trip {_ms(conditions.rtt_s)};"
        f" device {' / '.join(sorted(speeds))} of this machine; unsplit {_ms(costs.step_s)} here"
    )


def _cells(row: Cut) -> tuple[str, ...]:
    return (
        " | ".join(row.cuts),
        str(row.head_layers),
        size(row.bytes_up),
        size(row.bytes_down),
        " | ".join(map(_count, row.parameters)),
        size(row.memory_bytes),
        "–" if row.correlation is None else f"{row.correlation:.3f}",
        *(_ms(seconds) for seconds in (row.device_s, row.server_s, row.link_s, row.step_s)),
    )


def _count(number: int) -> str:
    """`23.5M`, `9.4k`, `516`."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.1f}{name}"
    return str(number)


def _mark(found: CutPlan, row: Cut) -> str:
    if row.cuts == found.best.cuts:
        return "best"
    own = ["yours"] if found.own is not None and row.cuts == found.own.cuts else []
    why = {"limits": f": {row.why}"}
    return ", ".join([*own, *(f"breaks {_COLUMN[name]}{why.get(name, '')}" for name in row.violates)])


def _ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 10 else f"{seconds * 1e3:.{1 if seconds < 1 else 0}f} ms"


def _draw(found: CutPlan, output: Path) -> None:
    from spliteasy.planning import picture

    try:
        picture.draw(output, found)
        typer.echo(f"picture: {output}", err=True)
    except ModuleNotFoundError as missing:
        typer.echo(f"no picture: {missing.name} is not installed (pip install 'spliteasy[demo]')", err=True)
