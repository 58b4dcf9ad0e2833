"""`spliteasy agent`: one device's training."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.cli.connecting import BrokerOption, find_url, shown
from spliteasy.cli.identifiers import check_identifier
from spliteasy.cli.logging import set_up_logging
from spliteasy.cli.running import run
from spliteasy.cli.threads import ThreadsOption, torch_threads

if TYPE_CHECKING:
    from device_agent.agent import AgentConfig, AgentResult

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="The device's data: module:function returning a torch Dataset or a pair (train, test), "
        "called with the device's id if it takes one; or a folder of images.",
        show_default=False,
    ),
]


def agent(
    context: typer.Context,
    job: Annotated[str, typer.Option(help="NAME, or NAME@DIGEST for one version.", show_default=False)],
    device: Annotated[
        str, typer.Option(help="This device's id: a-z, 0-9 and -, at most 63.", show_default=False)
    ],
    data: DataOption,
    state: Annotated[
        Path | None, typer.Option(help="Where checkpoints are kept.", show_default="runs/agents/JOB.DEVICE")
    ] = None,
    broker: BrokerOption = None,
    takeover: Annotated[
        bool,
        typer.Option("--takeover", help="Go on from this state folder even if the store knows a newer run."),
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin at step 0 again, whatever the store has.")
    ] = False,
    threads: ThreadsOption = 1,
) -> None:
    """Train the job's head and tail on this device's data; the body's part happens on workers.

    Needs the broker only. Ctrl-C stops after the step at hand; the same command goes on from there.
    """
    check_identifier("--job", job.partition("@")[0])
    check_identifier("--device", device)
    live = sys.stdout.isatty()
    set_up_logging(context, "warning" if live else "info")
    from device_agent.agent import AgentConfig

    config = AgentConfig(
        job=job,
        device=device,
        data=data,
        state=state or Path("runs/agents") / f"{job.partition('@')[0]}.{device}",
        takeover=takeover,
        restart=restart,
    )
    url = find_url("broker", broker)
    with torch_threads(threads):
        result = run(
            lambda stop: _train(config, url, stop, live=live), on_stop="stopping after the step at hand"
        )
    if result.done:
        typer.echo(f"{device}: done, {result.step} steps; the state is in {config.state}")
    else:
        typer.echo(
            f"{device}: stopped after step {result.step} of {result.total_steps}; "
            "the same command goes on from there"
        )


async def _train(config: AgentConfig, url: str, stop: asyncio.Event, *, live: bool) -> AgentResult:
    from broker import connect
    from device_agent.agent import Agent
    from spliteasy.cli.progress import Board
    from spliteasy.cli.watching import LogLines, Watcher
    from spliteasy.compute import TorchThread

    lines = LogLines()
    watcher = Watcher([config.device], lambda run, notable: None if live else lines(run, notable))
    title = f"{config.job} on {shown(url)}"
    board = Board(list(watcher.runs.values()), title=title) if live else nullcontext()
    compute = TorchThread()
    try:
        with board:
            running = Agent(config, connect=lambda: connect(url), compute=compute, observe=watcher)
            return await running.run(stop)
    finally:
        compute.close()
