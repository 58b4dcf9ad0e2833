"""`spliteasy worker`: one more server worker."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError
from spliteasy.runtime.urls import shown
from spliteasy_cli.commands.keys import StoreKeyOption, store_keys
from spliteasy_cli.support.endpoints import BrokerOption, StoreOption, find_url, local_stack_is, store_at
from spliteasy_cli.support.enrolment import EnrolmentOption, connect_enrolled, read_enrolment
from spliteasy_cli.support.identifiers import check_identifier
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.metrics_endpoint import MetricsHostOption, MetricsPortOption, Monitoring
from spliteasy_cli.support.patience import GiveUpOption, seconds
from spliteasy_cli.support.runner import run
from spliteasy_cli.support.threads import ThreadsOption, torch_threads
from spliteasy_cli.support.trace_export import TracesOption, tracing

if TYPE_CHECKING:
    from broker import Transport
    from server_worker.config import WorkerConfig
    from server_worker.engine.local import LocalEngine
    from server_worker.store import StoreKeys
    from server_worker.worker import Connect
    from spliteasy.observability.traces import Tracer

MIB = 1 << 20


NameOption = Annotated[
    str | None, typer.Option("--name", help="Its name among the workers.", show_default="host, pid, random")
]
TrustOption = Annotated[
    str | None,
    typer.Option(
        "--trust",
        help="Whom to believe to be a device: 'enrolled' (the broker's accounts), or 'open' (one shared "
        "account, anybody on the broker may speak for any device).",
        show_default="enrolled; open on the local stack",
        metavar="enrolled|open",
    ),
]
MemoryOption = Annotated[
    int,
    typer.Option(
        "--memory-mib", min=1, help="Sessions kept in memory up to this many MiB; the rest is parked."
    ),
]
WaitingOption = Annotated[
    int,
    typer.Option(
        "--waiting-mib",
        min=1,
        help="MiB of requests that may wait for others of their step, of all sessions together.",
    ),
]
DeadOption = Annotated[
    int,
    typer.Option(
        "--dead-mib",
        min=1,
        help="MiB of dead letters that the broker keeps, the newest. The same for all workers; to change "
        "it, delete the queue spliteasy.dead first.",
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
    typer.Option("--drain-s", min=0.0, help="Seconds that a stopping worker has to finish what is at hand."),
]
JobsOption = Annotated[int, typer.Option("--jobs", min=1, help="Job programs kept in memory.")]
HeartbeatOption = Annotated[
    int,
    typer.Option(
        "--heartbeat-s",
        min=2,
        help="The sessions of a worker that falls silent move within two of these and a second.",
    ),
]


def worker(
    context: typer.Context,
    broker: BrokerOption = None,
    store: StoreOption = None,
    store_key: StoreKeyOption = None,
    name: NameOption = None,
    trust: TrustOption = None,
    enrolment: EnrolmentOption = None,
    threads: ThreadsOption = 1,
    memory_mib: MemoryOption = 4096,
    waiting_mib: WaitingOption = 1024,
    dead_mib: DeadOption = 256,
    device_messages: DeviceMessagesOption = 2000.0,
    device_mib: DeviceMibOption = 1024.0,
    device_sessions: DeviceSessionsOption = 8,
    drain_s: DrainOption = 20.0,
    give_up_after: GiveUpOption = None,
    jobs: JobsOption = 32,
    heartbeat_s: HeartbeatOption = 2,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = "127.0.0.1",
    traces: TracesOption = None,
) -> None:
    """Serve training sessions until Ctrl-C or SIGTERM, then drain and leave.

    Takes its share of the sessions within seconds; start as many as there are cores.
    """
    set_up_logging(context, "info")
    url = read_enrolment(enrolment, role="worker").url if enrolment else find_url("broker", broker)
    trusted = _trust(trust, url)
    if name is not None:
        check_identifier("--name", name)
    store = find_url("store", store)
    keys = store_keys(store_key, store)

    async def main(stop: asyncio.Event) -> None:
        import structlog

        from server_worker import metrics
        from server_worker.admission.quotas import DeviceQuota
        from server_worker.config import Trust, WorkerConfig, amqp_heartbeat_s

        config = WorkerConfig(
            trust=Trust(trusted),
            memory_bytes=memory_mib * MIB,
            waiting_bytes=waiting_mib * MIB,
            dead_bytes=dead_mib * MIB,
            jobs=jobs,
            drain_s=drain_s,
            give_up_s=seconds(give_up_after),
            quota=DeviceQuota(
                messages_per_s=device_messages, bytes_per_s=device_mib * MIB, sessions=device_sessions
            ),
        )
        if name is not None:
            config = replace(config, name=name)
        structlog.get_logger(__name__).info(
            "worker starts", worker=config.name, broker=shown(url), trust=trusted, threads=threads
        )
        if not keys.keys:
            structlog.get_logger(__name__).warning(
                "requests and snapshots lie in the store in the open: no --store-key was given"
            )
        reach = partial(_reach, enrolment, url, heartbeat_s=amqp_heartbeat_s(heartbeat_s))
        monitoring = Monitoring(metrics.ALL, port=metrics_port, host=metrics_host)
        collector = tracing(traces, service="spliteasy-worker", instance=config.name)
        await _serve(config, reach, store, keys, monitoring, closing.enter_context(collector), stop)

    with torch_threads(threads), ExitStack() as closing:
        run(main, on_stop="draining: finishing what is at hand")


def _trust(option: str | None, url: str) -> str:
    """Whom to believe: on the local stack, where all may share one account, anybody. Raises UserError."""
    if option is None:
        return "open" if local_stack_is(url) else "enrolled"
    if option not in ("enrolled", "open"):
        raise UserError(f"--trust {option} is not known", hint="enrolled or open")
    return option


async def _reach(enrolment: Path | None, url: str, *, heartbeat_s: int) -> Transport:
    from broker import connect

    if enrolment is None:
        return await connect(url, heartbeat_s=heartbeat_s)
    return await connect_enrolled(enrolment, role="worker", heartbeat_s=heartbeat_s)


async def _serve(
    config: WorkerConfig,
    reach: Connect,
    store: str,
    keys: StoreKeys,
    monitoring: Monitoring,
    tracer: Tracer | None,
    stop: asyncio.Event,
) -> None:
    """Run the worker over the store and a torch thread, and serve its metrics."""
    from server_worker import gauges, metrics
    from server_worker.worker import Worker
    from spliteasy.runtime.torch_thread import TorchThread

    thread, meter = TorchThread(), monitoring.meter
    try:
        async with store_at(store, keys=keys, unreachable_s=config.patience_s) as open_store:
            running = Worker(
                config,
                connect=reach,
                store=metrics.metered_store(open_store, meter, time.monotonic),
                engine=LocalEngine(metrics.MeteredCompute(thread, meter, time.monotonic)),
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
