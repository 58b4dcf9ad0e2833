"""`spliteasy agent`: train on one device."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spliteasy.errors import UserError
from spliteasy.runtime.urls import shown
from spliteasy_cli.options.fleet_key import FleetKeyOption, read_fleet_key
from spliteasy_cli.options.histories import HistoryOption, MlflowOption, TensorboardOption, histories
from spliteasy_cli.options.metrics_endpoint import (
    METRICS_HOST,
    MetricsHostOption,
    MetricsPortOption,
    Monitoring,
)
from spliteasy_cli.options.patience import GiveUpOption, seconds
from spliteasy_cli.options.threads import DEFAULT_THREADS, ThreadsOption, torch_threads
from spliteasy_cli.options.trace_export import TracesOption, tracing
from spliteasy_cli.support.endpoints import BrokerOption, EnrolmentOption, find_url
from spliteasy_cli.support.identifiers import check_identifier
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.runner import run

if TYPE_CHECKING:
    import asyncio

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
        "--device",
        help="This device's id, of at most 63 characters a-z, 0-9 and -.",
        show_default="as the enrolment says",
    ),
]
StateOption = Annotated[
    Path | None,
    typer.Option("--state", help="The folder for checkpoints.", show_default="runs/agents/JOB.DEVICE"),
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
    typer.Option(
        "--when-every", min=0.05, metavar="SECONDS", help="Seconds between looks at the conditions."
    ),
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
StopIfHijackedOption = Annotated[
    bool,
    typer.Option(
        "--stop-if-hijacked",
        help="End the training where the gradients that come back look made up, to train the head for the "
        "worker. Without it the log says so once.",
    ),
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Begin at step 0 again, whatever the store keeps of the session.")
]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        min=1,
        metavar="N",
        help="Train so many epochs in all, in place of the job's. With more than before, the training goes "
        "on from the trained weights.",
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

NewVersionOption = Annotated[
    bool,
    typer.Option(
        "--new-version",
        help="Go on from the trained weights with the newest version of the job, or the one that is named.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The device and its job, and the broker, as the options and the enrolment name them."""

    job: str
    device: str
    broker: str
    """The broker's URL without the password."""
    connect: Connect
    operator_key: str | None
    """The public key that must have signed the job; None lets the agent load any job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Parts that run beside the training: histories, metrics, traces and the conditions for
    training at all."""

    kept: Sequence[Kept]
    monitoring: Monitoring
    gate: Gate | None
    tracer: Tracer | None
    live: bool
    """Standard output is a terminal that shows a table."""


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
    stop_if_hijacked: StopIfHijackedOption = False,
    epochs: EpochsOption = None,
    new_data: NewDataOption = False,
    new_version: NewVersionOption = False,
    give_up_after: GiveUpOption = None,
    history: HistoryOption = None,
    tensorboard: TensorboardOption = False,
    mlflow: MlflowOption = None,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = METRICS_HOST,
    traces: TracesOption = None,
    threads: ThreadsOption = DEFAULT_THREADS,
) -> None:
    """Train the job's head and tail on this device's data, while a worker trains the body.

    The agent needs the broker only: its URL, or the file that `spliteasy device enroll` wrote. Ctrl-C stops
    it after the step that it is computing; the same command goes on from there.
    """
    if restart and new_version:
        raise UserError("--new-version goes on from trained weights, --restart starts over", hint="give one")
    peer = find_peer(job, device, enrolment, broker)
    live = sys.stdout.isatty()
    set_up_logging(context, "warning" if live else "info")
    if enrolment is not None and peer.operator_key is None:
        _warn_of_unsigned_jobs(enrolment)
    gate = _gate(when, when_every)
    name, _, digest = peer.job.partition("@")
    kept = histories(history, tensorboard, mlflow, job=name, digest=digest, fresh=restart)
    monitoring = _monitoring(metrics_port, metrics_host)
    config = agent_config(
        peer,
        data=data,
        state=state or Path("runs/agents") / f"{name}.{peer.device}",
        takeover=takeover,
        restart=restart,
        refuse_public_ends=refuse_public_ends,
        fleet_key=None if fleet_key is None else read_fleet_key(fleet_key),
        stop_if_hijacked=stop_if_hijacked,
        epochs=epochs,
        new_data=new_data,
        new_version=new_version,
        give_up_s=seconds(give_up_after),
        max_uplink=max_uplink,
        metered=metered,
    )
    with torch_threads(threads), tracing(traces, service="spliteasy-agent", instance=peer.device) as tracer:
        services = Services(kept=kept, monitoring=monitoring, gate=gate, tracer=tracer, live=live)
        result = run(
            lambda stop: _train(config, peer, services, stop),
            on_stop="stopping after the step that is being computed",
        )
    _tell_end(result, config)


def agent_config(
    peer: Peer, *, data: str, state: Path, max_uplink: str | None, metered: str | None, **settings: Any
) -> AgentConfig:
    """Return the agent's settings. Raises UserError where a rate or a size can't be read."""
    from device_agent.config import AgentConfig
    from spliteasy.runtime.units import parse_rate

    return AgentConfig(
        job=peer.job,
        device=peer.device,
        operator_key=peer.operator_key,
        data=data,
        state=state,
        max_uplink=None if max_uplink is None else parse_rate(max_uplink, "--max-uplink"),
        metered=None if metered is None else _budget(metered),
        **settings,
    )


def _gate(when: Sequence[str] | None, every_s: float) -> Gate | None:
    """Return the gate that the conditions close, or None without conditions. Raises UserError."""
    from device_agent.policy.run_conditions import Gate, parse_conditions

    condition = parse_conditions(when or ())
    return Gate(condition, every_s=every_s) if condition is not None else None


def _monitoring(port: int | None, host: str) -> Monitoring:
    from device_agent import metrics

    return Monitoring(metrics.ALL, port=port, host=host)


def _tell_end(result: AgentResult, config: AgentConfig) -> None:
    name = config.job.partition("@")[0]
    if result.newest is not None:
        typer.echo(
            f"{result.device}: a newer version of job {name} was submitted ({result.newest[:12]}); this "
            f"state folder keeps to {result.job[:12]}. To go on with the newer one from the trained weights: "
            "--new-version. To train it from its beginning: --restart with another --state folder"
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


def find_peer(job: str | None, device: str | None, enrolment: Path | None, broker: str | None) -> Peer:
    """Return job, device and broker, as the options or the enrolment name them. Raises UserError."""
    if job is not None:
        check_identifier("--job", job.partition("@")[0])
    if device is not None:
        check_identifier("--device", device)
    if enrolment is not None:
        return _enrolled_peer(enrolment, job, device)
    if job is None or device is None:
        missing = "--job" if job is None else "--device"
        raise UserError(f"{missing} is missing", hint="name it, or give --enrolment FILE")
    url = find_url("broker", broker)

    async def connect_by_url() -> Transport:
        from broker import connect

        return await connect(url)

    return Peer(job=job, device=device, broker=shown(url), connect=connect_by_url, operator_key=None)


def _enrolled_peer(file: Path, job: str | None, device: str | None) -> Peer:
    from spliteasy_cli.support.enrolment import connect_enrolled, read_enrolment

    enrolment = read_enrolment(file)
    job = job or enrolment.job
    if device not in (None, enrolment.account):
        raise UserError(f"{file} is the enrolment of {enrolment.account}, not of {device}")
    if job is None:
        raise UserError(f"--job is missing, and {file} names none", hint="--job NAME")
    return Peer(
        job=job,
        device=enrolment.account,
        broker=enrolment.broker,
        connect=lambda: connect_enrolled(file),
        operator_key=enrolment.operator_key,
    )


def _warn_of_unsigned_jobs(file: Path) -> None:
    import structlog

    structlog.get_logger(__name__).warning(
        "jobs are not checked for a signature: the enrolment names no operator's key", enrolment=str(file)
    )


async def _train(config: AgentConfig, peer: Peer, services: Services, stop: asyncio.Event) -> AgentResult:
    from device_agent import metrics
    from device_agent.agent import Agent
    from spliteasy.runtime.torch_thread import TorchThread
    from spliteasy_cli.history.run_history import tell_all
    from spliteasy_cli.support.service_notifier import Notifier
    from spliteasy_cli.watch.progress import ProgressBoard
    from spliteasy_cli.watch.run_recorder import LogLines, Watcher

    lines, live = LogLines(), services.live
    watcher = Watcher([config.device], lambda run, notable: None if live else lines(run, notable))
    title = f"{config.job} on {peer.broker}"
    board = ProgressBoard(list(watcher.runs.values()), title=title) if live else nullcontext()
    compute = TorchThread()
    try:
        with board, ExitStack() as histories:
            for history in services.kept:
                histories.enter_context(history)
            running = Agent(
                config,
                connect=peer.connect,
                compute=compute,
                observe=tell_all(watcher, Notifier(), *services.kept),
                meter=services.monitoring.meter,
                gate=services.gate,
                tracer=services.tracer,
            )
            async with services.monitoring.serving(
                measure=partial(metrics.measure, running),
                why_not_ready=partial(metrics.why_not_ready, running),
            ):
                return await running.run(stop)
    finally:
        compute.close()
