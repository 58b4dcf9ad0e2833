"""`spliteasy worker`: start one more server worker."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError
from spliteasy.runtime import worker_defaults as defaults
from spliteasy.runtime.urls import places_of, shown
from spliteasy_cli.commands.keys import StoreKeyOption, store_keys
from spliteasy_cli.options.config_file import ConfigOption
from spliteasy_cli.options.metrics_endpoint import (
    METRICS_HOST,
    MetricsHostOption,
    MetricsPortOption,
    Monitoring,
)
from spliteasy_cli.options.patience import GiveUpOption, seconds
from spliteasy_cli.options.threads import DEFAULT_THREADS, ThreadsOption, torch_threads
from spliteasy_cli.options.trace_export import TracesOption, tracing
from spliteasy_cli.support.endpoints import (
    BrokerOption,
    EnrolmentOption,
    StoreOption,
    find_url,
    local_stack_is,
    store_at,
)
from spliteasy_cli.support.identifiers import check_identifier
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.runner import run

if TYPE_CHECKING:
    import asyncio

    import torch

    from broker import Transport
    from broker.transport.topology import QueueType
    from server_worker.config import WorkerConfig
    from server_worker.store import StoreKeys
    from server_worker.worker import Connect
    from spliteasy.observability.traces import Tracer

NameOption = Annotated[
    str | None,
    typer.Option("--name", help="The worker's name among all workers.", show_default="host, pid, random"),
]
TrustOption = Annotated[
    str | None,
    typer.Option(
        "--trust",
        help="Who counts as a device: 'enrolled' (the broker's accounts), or 'open' (one shared "
        "account, so that anybody on the broker may speak for any device).",
        show_default="enrolled; open on the local stack",
        metavar="enrolled|open",
    ),
]
MemoryOption = Annotated[
    int,
    typer.Option("--memory-mib", min=1, help="Keep sessions in memory up to this many MiB; park the others."),
]
WaitingOption = Annotated[
    int,
    typer.Option(
        "--waiting-mib",
        min=1,
        help="MiB that requests of all sessions may take while they wait for earlier ones of their step.",
    ),
]
RowsOption = Annotated[
    int,
    typer.Option(
        "--rows-mib",
        min=0,
        help="MiB of activations that are kept for devices with a frozen head, so that they need not send "
        "them again; one session may have half of it, and with 0 nothing is kept.",
    ),
]
DeadOption = Annotated[
    int,
    typer.Option(
        "--dead-mib",
        min=1,
        help="MiB of the newest dead letters that the broker keeps. It is the same for all workers; to "
        "change it, delete the queue spliteasy.dead first.",
    ),
]
DeviceMessagesOption = Annotated[
    float, typer.Option("--device-messages", min=1.0, help="Messages a second that one device may send.")
]
DeviceMibOption = Annotated[
    float, typer.Option("--device-mib", min=1.0, help="MiB a second that one device may send.")
]
DeviceSessionsOption = Annotated[
    int, typer.Option("--device-sessions", min=1, help="Jobs that one device may train at a time.")
]
DrainOption = Annotated[
    float,
    typer.Option(
        "--drain-s", min=0.0, help="Seconds that a stopping worker has to finish the steps that have begun."
    ),
]
JobsOption = Annotated[
    int, typer.Option("--jobs", min=1, help="Keep the programs of this many jobs in memory.")
]
RequestTflopOption = Annotated[
    float,
    typer.Option(
        "--request-tflop",
        min=0.000001,
        help="Refuse jobs of which one request takes more than so many million million operations.",
    ),
]
ShardsOption = Annotated[
    int | None,
    typer.Option(
        "--shards",
        min=1,
        max=defaults.MAX_SHARDS,
        envvar="SPLITEASY_SHARDS",
        help="In how many shards sessions are spread over workers, and so the most workers that find work. "
        "The first worker of a stack fixes it.",
        show_default="what the stack has; 16 for a new one",
    ),
]
QueuesOption = Annotated[
    str | None,
    typer.Option(
        "--queues",
        metavar="classic|quorum",
        envvar="SPLITEASY_QUEUES",
        help="The type of the broker's queues: 'classic' (in one node's memory, half the broker's work) or "
        "'quorum' (copied to the nodes of a cluster). The first worker of a stack fixes it.",
        show_default="what the stack has; quorum for a new one",
    ),
]
TakeoverOption = Annotated[
    int,
    typer.Option(
        "--takeover-s",
        min=5,
        help="When this worker falls silent, its sessions move to another one within so many seconds.",
    ),
]
ProcessorOption = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="SPLITEASY_WORKER_DEVICE",
        metavar="cpu|cuda:N|xpu:N|mps",
        help="The processor that bodies lie on and are computed by. Memory limits are of its memory then.",
    ),
]


def _refuse_heartbeat(value: str | None) -> None:
    if value is not None:
        raise UserError("--heartbeat-s is --takeover-s now", hint="two heartbeats of 2 s: --takeover-s 5")


OldHeartbeatOption = Annotated[
    str | None, typer.Option("--heartbeat-s", hidden=True, callback=_refuse_heartbeat)
]

EXIT_LOST = 3
"""The exit status of a worker whose accelerator failed: a new process may use it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on what sessions and devices may use of a worker, as the options say."""

    memory_mib: int
    waiting_mib: int
    rows_mib: int
    dead_mib: int
    jobs: int
    request_tflop: float
    drain_s: float
    device_messages: float
    device_mib: float
    device_sessions: int


def worker(
    context: typer.Context,
    config: ConfigOption = None,
    broker: BrokerOption = None,
    store: StoreOption = None,
    store_key: StoreKeyOption = None,
    name: NameOption = None,
    trust: TrustOption = None,
    enrolment: EnrolmentOption = None,
    threads: ThreadsOption = DEFAULT_THREADS,
    device: ProcessorOption = "cpu",
    memory_mib: MemoryOption = defaults.MEMORY_MIB,
    waiting_mib: WaitingOption = defaults.WAITING_MIB,
    rows_mib: RowsOption = defaults.ROWS_MIB,
    dead_mib: DeadOption = defaults.DEAD_MIB,
    device_messages: DeviceMessagesOption = defaults.DEVICE_MESSAGES_PER_S,
    device_mib: DeviceMibOption = defaults.DEVICE_MIB_PER_S,
    device_sessions: DeviceSessionsOption = defaults.DEVICE_SESSIONS,
    drain_s: DrainOption = defaults.DRAIN_S,
    give_up_after: GiveUpOption = None,
    jobs: JobsOption = defaults.JOBS,
    request_tflop: RequestTflopOption = defaults.REQUEST_TFLOP,
    takeover_s: TakeoverOption = defaults.TAKEOVER_S,
    shards: ShardsOption = None,
    queues: QueuesOption = None,
    _heartbeat_s: OldHeartbeatOption = None,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = METRICS_HOST,
    traces: TracesOption = None,
) -> None:
    """Serve training sessions until Ctrl-C or SIGTERM, then finish the steps that have begun and leave.

    A worker takes its share of the sessions within seconds; start as many as there are cores.
    """
    set_up_logging(context, "info")
    limits = Limits(
        memory_mib=memory_mib,
        waiting_mib=waiting_mib,
        rows_mib=rows_mib,
        dead_mib=dead_mib,
        jobs=jobs,
        request_tflop=request_tflop,
        drain_s=drain_s,
        device_messages=device_messages,
        device_mib=device_mib,
        device_sessions=device_sessions,
    )
    if queues not in (None, "classic", "quorum"):
        raise UserError(f"--queues {queues} is not known", hint="classic or quorum")
    where = _broker_url(enrolment, broker)
    trusted = _trust(trust, where)
    if name is not None:
        check_identifier("--name", name)
    store = find_url("store", store)
    keys = store_keys(store_key, store)

    async def main(stop: asyncio.Event) -> None:
        from server_worker import metrics
        from spliteasy.runtime.accelerator import processor_named, settle

        processor = processor_named(device)
        settle(processor)
        settings = worker_config(name, trusted, limits, seconds(give_up_after))
        _log_start(settings, where, trusted, threads, str(processor), sealed=bool(keys.keys))
        reach = partial(_reach, enrolment, where, takeover_s=takeover_s)
        monitoring = Monitoring(metrics.ALL, port=metrics_port, host=metrics_host)
        with tracing(traces, service="spliteasy-worker", instance=settings.name) as tracer:
            stack = (where, shards, queues)
            await _serve(settings, processor, stack, reach, store, keys, monitoring, tracer, stop)

    with torch_threads(threads):
        run(main, on_stop="draining: the worker finishes the steps that have begun")


def worker_config(name: str | None, trust: str, limits: Limits, give_up_s: float | None) -> WorkerConfig:
    """Return the worker's settings. Without a name it makes one."""
    from server_worker.admission.quotas import DeviceQuota
    from server_worker.config import MIB, Trust, WorkerConfig

    config = WorkerConfig(
        trust=Trust(trust),
        memory_bytes=limits.memory_mib * MIB,
        waiting_bytes=limits.waiting_mib * MIB,
        rows_bytes=limits.rows_mib * MIB,
        dead_bytes=limits.dead_mib * MIB,
        jobs=limits.jobs,
        request_tflop=limits.request_tflop,
        drain_s=limits.drain_s,
        give_up_s=give_up_s,
        quota=DeviceQuota(
            messages_per_s=limits.device_messages,
            bytes_per_s=limits.device_mib * MIB,
            sessions=limits.device_sessions,
        ),
    )
    return config if name is None else replace(config, name=name)


def _log_start(
    config: WorkerConfig, broker: str, trust: str, threads: int, device: str, *, sealed: bool
) -> None:
    import structlog

    log = structlog.get_logger(__name__)
    log.info(
        "the worker starts",
        worker=config.name,
        broker=shown(broker),
        trust=trust,
        threads=threads,
        device=device,
    )
    if not sealed:
        log.warning("requests and snapshots lie in the store in the open: no --store-key was given")


def _broker_url(enrolment: Path | None, broker: str | None) -> str:
    if enrolment is None:
        return find_url("broker", broker)
    from spliteasy_cli.support.enrolment import read_enrolment

    return read_enrolment(enrolment, role="worker").url


def _trust(option: str | None, url: str) -> str:
    """Return whom the worker believes to be a device: anybody on the local stack, where all may share one
    account, and else the owners of accounts. Raises UserError."""
    if option is None:
        return "open" if local_stack_is(url) else "enrolled"
    if option not in ("enrolled", "open"):
        raise UserError(f"--trust {option} is not known", hint="enrolled or open")
    return option


async def _reach(enrolment: Path | None, url: str, *, takeover_s: int) -> Transport:
    from broker import connect
    from server_worker.config import amqp_heartbeat_s
    from spliteasy_cli.support.enrolment import connect_enrolled

    heartbeat_s = amqp_heartbeat_s(takeover_s)
    if enrolment is None:
        return await connect(url, heartbeat_s=heartbeat_s)
    return await connect_enrolled(enrolment, role="worker", heartbeat_s=heartbeat_s)


def _check_cluster(broker: str, queues: QueueType) -> None:
    """Raises UserError where the broker has several nodes, and the stack classic queues."""
    if len(places_of(broker)) > 1 and queues == "classic":
        raise UserError(
            "the broker's URL names several nodes, and the stack has classic queues: each would be gone with "
            "its node",
            hint="docs/operations.md says how to change the type; a new stack takes --queues quorum",
        )


async def _serve(
    config: WorkerConfig,
    processor: torch.device,
    stack: tuple[str, int | None, str | None],
    reach: Connect,
    store: str,
    keys: StoreKeys,
    monitoring: Monitoring,
    tracer: Tracer | None,
    stop: asyncio.Event,
) -> None:
    """Run the worker over the store and the processor, and serve its metrics. `stack`: the broker's URL, the
    number of shards and the type of the queues, as the options say."""
    from broker.transport.topology import QueueType
    from server_worker import gauges, metrics
    from server_worker.engine.local import LocalEngine
    from server_worker.placement.queue_type import settle_queue_type
    from server_worker.placement.shards import settle_shards
    from server_worker.worker import Worker
    from spliteasy.runtime.accelerator import lanes_of
    from spliteasy.runtime.torch_thread import TorchThread

    thread, meter = TorchThread(threads=lanes_of(processor)), monitoring.meter
    broker, shards, kind = stack
    queues = None if kind is None else QueueType(kind)
    try:
        async with store_at(store, keys=keys, unreachable_s=config.patience_s) as open_store:
            settled = await settle_queue_type(open_store, queues)
            _check_cluster(broker, settled)
            running = Worker(
                replace(config, queues=settled, shards=await settle_shards(open_store, shards)),
                connect=reach,
                store=metrics.metered_store(open_store, meter, time.monotonic),
                engine=LocalEngine(
                    metrics.MeteredCompute(thread, meter, time.monotonic), processor, lost=_end_process
                ),
                meter=meter,
                tracer=tracer,
            )
            async with monitoring.serving(
                measure=partial(gauges.measure, running, meter),
                why_not_ready=partial(gauges.why_not_ready, running),
            ):
                await running.run(stop)
    finally:
        thread.close()


def _end_process(error: RuntimeError) -> None:
    """End at once: the accelerator gives this process nothing more, and no request must be answered for it.

    The worker that takes the session over gets the request again, and buries one that ended several workers.
    """
    import structlog

    log = structlog.get_logger(__name__)
    log.critical("the accelerator failed, and the worker ends; start it again", error=str(error)[:500])
    logging.shutdown()
    os._exit(EXIT_LOST)
