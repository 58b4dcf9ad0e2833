"""`spliteasy agent`: one device's training."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError
from spliteasy.runtime.urls import shown
from spliteasy_cli.history.mlflow_history import MlflowHistory, MlflowOption
from spliteasy_cli.history.run_history import HistoryOption, TensorboardOption
from spliteasy_cli.support.endpoints import BrokerOption, find_url
from spliteasy_cli.support.enrolment import EnrolmentOption, connect_enrolled, read_enrolment
from spliteasy_cli.support.fleet_key import FleetKeyOption, read_fleet_key
from spliteasy_cli.support.identifiers import check_identifier
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.metrics_endpoint import MetricsHostOption, MetricsPortOption, Monitoring
from spliteasy_cli.support.patience import GiveUpOption, seconds
from spliteasy_cli.support.runner import run
from spliteasy_cli.support.threads import ThreadsOption, torch_threads
from spliteasy_cli.support.trace_export import TracesOption, tracing

if TYPE_CHECKING:
    from broker import Transport
    from device_agent.agent import AgentResult
    from device_agent.config import AgentConfig
    from device_agent.link.link import Connect
    from device_agent.policy.run_conditions import Gate
    from spliteasy.observability.traces import Tracer
    from spliteasy_cli.history.run_history import Kept

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="The device's data: module:function returning a torch Dataset or (train, test), "
        "called with the device's id if it takes one; or a folder of images.",
        show_default=False,
    ),
]


JobOption = Annotated[
    str | None,
    typer.Option("--job", help="NAME, or NAME@DIGEST for one version.", show_default="as the enrolment says"),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", help="This device's id: a-z, 0-9 and -, at most 63.", show_default="as the enrolment says"
    ),
]
StateOption = Annotated[
    Path | None,
    typer.Option("--state", help="Where checkpoints are kept.", show_default="runs/agents/JOB.DEVICE"),
]
WhenOption = Annotated[
    list[str] | None,
    typer.Option(
        "--when",
        metavar="CONDITION",
        help="Train only while this holds: hours:22-6, charging, wifi, a command that exits with 0, or "
        "module:function that returns true. Several: all must hold. Else it pauses between steps.",
        show_default="always",
    ),
]
WhenEveryOption = Annotated[
    float,
    typer.Option("--when-every", min=0.05, metavar="SECONDS", help="How often the conditions are asked."),
]
MaxUplinkOption = Annotated[
    str | None,
    typer.Option(
        "--max-uplink",
        metavar="RATE",
        help="Send no faster than this, so that others can use the link too: 2mbit (a second), 250kb/s. "
        "It holds on average; a call or a video beside it wants about half of the link's upload.",
        show_default="no limit",
    ),
]
MeteredOption = Annotated[
    str | None,
    typer.Option(
        "--metered",
        metavar="BYTES-A-DAY",
        help="Send and receive no more than this a day together: 200mb, 1gb. It pauses where the next "
        "step would not fit, and goes on at midnight, or started again with more. Restarts and "
        "reconnects count.",
        show_default="no limit",
    ),
]
TakeoverOption = Annotated[
    bool, typer.Option("--takeover", help="Go on from this state folder even if the store knows a newer run.")
]
RefusePublicEndsOption = Annotated[
    bool,
    typer.Option(
        "--refuse-public-ends",
        help="Don't train a job that has initial weights of head or tail, from which a worker can compute "
        "labels and inputs.",
    ),
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Begin at step 0 again, whatever the store has.")
]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        min=1,
        metavar="N",
        help="Train so many epochs in all, in place of the job's. More than before: goes on from the trained "
        "weights.",
        show_default="as the job says",
    ),
]
NewDataOption = Annotated[
    bool,
    typer.Option(
        "--new-data",
        help="Go on from the trained weights with the data as it is now, although it has changed since.",
    ),
]


def agent(
    context: typer.Context,
    data: DataOption,
    job: JobOption = None,
    device: DeviceOption = None,
    enrolment: EnrolmentOption = None,
    state: StateOption = None,
    broker: BrokerOption = None,
    when: WhenOption = None,
    when_every: WhenEveryOption = 10.0,
    max_uplink: MaxUplinkOption = None,
    metered: MeteredOption = None,
    takeover: TakeoverOption = False,
    restart: RestartOption = False,
    refuse_public_ends: RefusePublicEndsOption = False,
    fleet_key: FleetKeyOption = None,
    epochs: EpochsOption = None,
    new_data: NewDataOption = False,
    give_up_after: GiveUpOption = None,
    history: HistoryOption = None,
    tensorboard: TensorboardOption = False,
    mlflow: MlflowOption = None,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = "127.0.0.1",
    traces: TracesOption = None,
    threads: ThreadsOption = 1,
) -> None:
    """Train the job's head and tail on this device's data; the body's part happens on workers.

    Needs the broker only: its URL, or the file that `spliteasy enroll` wrote. Ctrl-C stops after the step at
    hand; the same command goes on from there.
    """
    if job is not None:
        check_identifier("--job", job.partition("@")[0])
    if device is not None:
        check_identifier("--device", device)
    job, device, title, connect, operator_key = _whom_and_where(job, device, enrolment, broker)
    live = sys.stdout.isatty()
    set_up_logging(context, "warning" if live else "info")
    if enrolment is not None and operator_key is None:
        _warn_of_unsigned_jobs(enrolment)
    from device_agent import metrics
    from device_agent.config import AgentConfig
    from device_agent.policy.run_conditions import Gate, parse_conditions
    from spliteasy.runtime.units import parse_rate

    condition = parse_conditions(when or ())
    gate = Gate(condition, every_s=when_every) if condition is not None else None
    kept = _kept(history, tensorboard)
    if mlflow is not None:
        kept.append(MlflowHistory(mlflow, *job.split("@"), anew=restart))
    monitoring = Monitoring(metrics.ALL, port=metrics_port, host=metrics_host)
    config = AgentConfig(
        job=job,
        device=device,
        data=data,
        state=state or Path("runs/agents") / f"{job.partition('@')[0]}.{device}",
        operator_key=operator_key,
        takeover=takeover,
        restart=restart,
        refuse_public_ends=refuse_public_ends,
        fleet_key=None if fleet_key is None else read_fleet_key(fleet_key),
        epochs=epochs,
        new_data=new_data,
        give_up_s=seconds(give_up_after),
        max_uplink=None if max_uplink is None else parse_rate(max_uplink, "--max-uplink"),
        metered=None if metered is None else _budget(metered),
    )
    with torch_threads(threads), tracing(traces, service="spliteasy-agent", instance=device) as tracer:
        result = run(
            lambda stop: _train(config, connect, title, stop, kept, monitoring, gate, tracer, live=live),
            on_stop="stopping after the step at hand",
        )
    _tell_end(result, config)


def _kept(history: Path | None, tensorboard: bool) -> list[Kept]:
    """Where what happens is written down. Raises UserError."""
    from spliteasy_cli.history.run_history import History

    if history is None:
        if tensorboard:
            raise UserError("--tensorboard goes with a history", hint="name its folder with --history DIR")
        return []
    return [History(history, tensorboard=tensorboard)]


def _tell_end(result: AgentResult, config: AgentConfig) -> None:
    name = config.job.partition("@")[0]
    if result.newest is not None:
        typer.echo(
            f"{result.device}: a newer version of job {name} was submitted ({result.newest[:12]}); this "
            f"state folder keeps to {result.job[:12]}. To go on from its trained weights for more epochs: "
            "--epochs N. To train the newer version from its beginning: --restart with another --state folder"
        )
    if result.done:
        typer.echo(f"{result.device}: done, {result.step} steps; the state is in {config.state}")
        if not result.taken:
            typer.echo(f"{result.device}: no step was left to take; --epochs N trains more")
        return
    whole = f" of {result.total_steps}" if result.total_steps else ""
    typer.echo(
        f"{result.device}: stopped after step {result.step}{whole}; the same command goes on from there"
    )


def _budget(text: str) -> int:
    from spliteasy.runtime.units import parse_size

    nbytes = parse_size(text, "--metered")
    if nbytes <= 0:
        raise UserError(f"--metered {text!r} must be above 0")
    return nbytes


def _whom_and_where(
    job: str | None, device: str | None, file: Path | None, broker: str | None
) -> tuple[str, str, str, Connect, str | None]:
    """Job, device, the broker's URL for a person, how to connect, the operator's key. Raises UserError."""
    if file is not None:
        enrolment = read_enrolment(file)
        job = job or enrolment.job
        if device not in (None, enrolment.account):
            raise UserError(f"{file} is the enrolment of {enrolment.account}, not of {device}")
        if job is None:
            raise UserError(f"--job is missing, and {file} names none", hint="--job NAME")
        where, key = enrolment.broker, enrolment.operator_key
        return job, enrolment.account, where, lambda: connect_enrolled(file), key
    if job is None or device is None:
        missing = "--job" if job is None else "--device"
        raise UserError(f"{missing} is missing", hint="name it, or give --enrolment FILE")

    url = find_url("broker", broker)

    async def connect_by_url() -> Transport:
        from broker import connect

        return await connect(url)

    return job, device, shown(url), connect_by_url, None


def _warn_of_unsigned_jobs(file: Path) -> None:
    import structlog

    structlog.get_logger(__name__).warning(
        "jobs are not checked for a signature: the enrolment names no operator's key", enrolment=str(file)
    )


async def _train(
    config: AgentConfig,
    connect: Connect,
    where: str,
    stop: asyncio.Event,
    kept: Sequence[Kept],
    monitoring: Monitoring,
    gate: Gate | None,
    tracer: Tracer | None,
    *,
    live: bool,
) -> AgentResult:
    from device_agent import metrics
    from device_agent.agent import Agent
    from spliteasy.runtime.torch_thread import TorchThread
    from spliteasy_cli.history.run_history import tell_all
    from spliteasy_cli.support.service_notifier import Notifier
    from spliteasy_cli.watch.progress import ProgressBoard
    from spliteasy_cli.watch.run_recorder import LogLines, Watcher

    lines = LogLines()
    watcher = Watcher([config.device], lambda run, notable: None if live else lines(run, notable))
    title = f"{config.job} on {where}"
    board = ProgressBoard(list(watcher.runs.values()), title=title) if live else nullcontext()
    compute = TorchThread()
    try:
        with board, ExitStack() as histories:
            for history in kept:
                histories.enter_context(history)
            running = Agent(
                config,
                connect=connect,
                compute=compute,
                observe=tell_all(watcher, Notifier(), *kept),
                meter=monitoring.meter,
                gate=gate,
                tracer=tracer,
            )
            async with monitoring.serving(
                measure=partial(metrics.measure, running),
                why_not_ready=partial(metrics.why_not_ready, running),
            ):
                return await running.run(stop)
    finally:
        compute.close()
