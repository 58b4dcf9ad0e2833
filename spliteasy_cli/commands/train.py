"""`spliteasy train`: devices, workers, broker and store, all in this process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import JobError, UserError
from spliteasy_cli.commands.agent import EpochsOption, NewDataOption, NewVersionOption
from spliteasy_cli.commands.submit import JobFile, create_job, store_job
from spliteasy_cli.options.fixed_secret import SecretOption, fixed_secret
from spliteasy_cli.options.fleet_key import own_fleet_key
from spliteasy_cli.options.histories import MlflowOption, TensorboardOption, histories
from spliteasy_cli.options.threads import DEFAULT_THREADS, ThreadsOption, torch_threads
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.runner import run

if TYPE_CHECKING:
    import asyncio

    from device_agent.agent import AgentResult
    from device_agent.config import AgentConfig
    from device_agent.observations import Observe
    from spliteasy.job import Job, JobSpec
    from spliteasy_cli.history.report import DeviceRun
    from spliteasy_cli.history.run_history import Kept

MAX_DEVICES = 1000
MAX_WORKERS = 64
DESCRIPTORS, DEVICE_DESCRIPTORS = 200, 3
"""File descriptors that a training needs, and that each device does: its state, its history, a file."""
STORE_FILE = "store.sqlite"
DEVICES_FOLDER = "devices"
HISTORY_FOLDER = "history"
DATA_FUNCTION = "device_data"


PartitionOption = Annotated[
    str | None,
    typer.Option(
        metavar="SPLIT",
        help="Split the data of all devices again over them: iid (evenly), dirichlet:0.3 (classes unevenly; "
        "the smaller, the more so) or classes:2 (that many classes each).",
        show_default="as the data function gives them",
    ),
]


def train(
    context: typer.Context,
    job_file: JobFile,
    devices: Annotated[
        int,
        typer.Option(min=1, max=MAX_DEVICES, help="The number of devices; they are named phone-1 and on."),
    ] = 1,
    workers: Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="The number of workers.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="The folder for report and state.", show_default="runs/JOB")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="The devices' data, as `agent` takes it.",
            show_default="device_data in the module of the model's factory",
        ),
    ] = None,
    partition: PartitionOption = None,
    alone: Annotated[
        bool,
        typer.Option(
            "--alone",
            help="Of a job with rounds: also train each device on its own data only, for as many steps, in "
            "plain PyTorch, and show the accuracy that it reaches beside the common model's.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the training in --out instead of starting over.")
    ] = False,
    epochs: EpochsOption = None,
    new_data: NewDataOption = False,
    new_version: NewVersionOption = False,
    tensorboard: TensorboardOption = False,
    mlflow: MlflowOption = None,
    secret: SecretOption = None,
    threads: ThreadsOption = DEFAULT_THREADS,
) -> None:
    """Train a job with everything in this process: no broker or store to install.

    The same agents, workers and messages as on a real broker. Ends with a table, and writes report.json,
    report.png and history/DEVICE.jsonl.
    """
    set_up_logging(context, "warning")
    with torch_threads(threads):
        from spliteasy_cli.fleets.first_round import check_size

        job = create_job(job_file)
        folder = out or Path("runs") / job.name
        check_size(job.spec.fleet, devices)
        if alone and not job.spec.fleet.has_rounds:
            raise UserError(f"--alone: the devices of {job.name} train alone anyway", hint="leave it out")
        configs = [
            replace(config, epochs=epochs, new_data=new_data, new_version=new_version)
            for config in agent_configs(
                job, job_file, folder, devices, data, fixed_secret(secret), partition=partition
            )
        ]
        prepare_folder(folder, resume=resume)
        kept = histories(
            folder / HISTORY_FOLDER, tensorboard, mlflow, job=job.name, digest=job.digest, fresh=not resume
        )
        runs, seconds, done = _train(job, configs, workers, folder, kept)
        if alone and done:
            _add_alone(job, job_file, configs, runs)
        write_report(job, runs, folder, workers=workers, seconds=seconds, threads=threads)
    if not done:
        typer.echo("stopped before the end; the same command with --resume goes on from there")


def _add_alone(job: Job, job_file: Path, configs: Sequence[AgentConfig], runs: Sequence[DeviceRun]) -> None:
    """Let each run say what its device reaches alone. Raises UserError where it was stopped."""
    from spliteasy.runtime.user_code import project_root
    from spliteasy_cli.support.alone import accuracies_alone

    typer.echo("training each device alone, for comparison", err=True)
    found = run(lambda stop: accuracies_alone(job, project_root(job_file), configs, stop), on_stop="stopping")
    for each in runs:
        each.alone = found[each.device]


def agent_configs(
    job: Job,
    job_file: Path,
    folder: Path,
    devices: int,
    data: str | None,
    secret: bytes | None = None,
    *,
    partition: str | None = None,
) -> list[AgentConfig]:
    """One agent a device, with its state under `folder`; they share a key where their ends are averaged."""
    from device_agent.config import AgentConfig
    from spliteasy.runtime.user_code import project_root

    root = project_root(job_file)
    names = [f"phone-{number + 1}" for number in range(devices)]
    fleet_key = own_fleet_key(folder, secret) if job.spec.fleet.ends_leave else None
    configs = [
        AgentConfig(
            job=f"{job.name}@{job.digest}",
            device=name,
            data=data or default_data(job.spec, root),
            state=folder / DEVICES_FOLDER / name,
            root=root,
            secret=secret,
            fleet_key=fleet_key,
        )
        for name in names
    ]
    if partition is None:
        return configs
    from spliteasy.fleet.partition import parse_partition
    from spliteasy_cli.support.partitioned import partitioned

    return partitioned(configs, job, root, parse_partition(partition))


def default_data(spec: JobSpec, root: Path) -> str:
    """`device_data` in the module of the model's factory, or in a package around it. Raises UserError."""
    from spliteasy.runtime.user_code import resolve

    module = spec.model.factory.partition(":")[0]
    while module:
        reference = f"{module}:{DATA_FUNCTION}"
        try:
            resolve(reference, root=root)
        except JobError:
            module = module.rpartition(".")[0]
        else:
            return reference
    raise UserError(
        f"no function {DATA_FUNCTION} beside the model of job {spec.name}",
        hint="name the data with --data module:function",
    )


def prepare_folder(folder: Path, *, resume: bool) -> None:
    """Make the folder; unless resuming, an earlier training's state in it goes. Raises UserError."""
    store, devices = folder / STORE_FILE, folder / DEVICES_FOLDER
    if resume:
        if not store.exists():
            raise UserError(f"{folder} holds no training to resume", hint="leave --resume out")
        return
    if devices.exists():
        if not store.exists():
            raise UserError(f"{devices} is not ours to replace", hint="name another folder with --out DIR")
        shutil.rmtree(devices)
        shutil.rmtree(folder / HISTORY_FOLDER, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob(f"{STORE_FILE}*"):
        file.unlink()


def _train(
    job: Job, configs: Sequence[AgentConfig], workers: int, folder: Path, kept: Sequence[Kept]
) -> tuple[list[DeviceRun], float, bool]:
    """Train with live progress: the runs, the seconds it took, whether all reached the last step."""
    from spliteasy_cli.history.run_history import tell_all
    from spliteasy_cli.watch.progress import ProgressBoard
    from spliteasy_cli.watch.run_recorder import Watcher

    watcher = Watcher([config.device for config in configs], lambda run, now: board.tell(run, now=now))
    runs = list(watcher.runs.values())
    title = (
        f"{job.name}@{job.digest[:12]}: {len(configs)} devices, {workers} workers, embedded broker and store"
    )
    board = ProgressBoard(runs, title=title)
    with ExitStack() as entered:
        for history in kept:
            entered.enter_context(history)
        entered.enter_context(board)
        began = time.monotonic()
        observe = tell_all(watcher, *kept)
        results = run(
            lambda stop: train_embedded(job, configs, workers, folder / STORE_FILE, observe, stop),
            on_stop="stopping after the current steps",
        )
        seconds = time.monotonic() - began
    return runs, seconds, all(result.done for result in results)


async def train_embedded(
    job: Job,
    configs: Sequence[AgentConfig],
    workers: int,
    store_file: Path,
    observe: Observe,
    stop: asyncio.Event,
) -> list[AgentResult]:
    """Train all devices over a broker in this process and a store in `store_file`.

    Stopping leaves a checkpoint of every device; what one device raises ends all.
    """
    import asyncio

    from broker.transport.in_process import MemoryBroker
    from server_worker.config import Trust
    from server_worker.store import open_store
    from spliteasy.runtime.descriptors import allow_descriptors
    from spliteasy_cli.fleets.first_round import begin_rounds
    from spliteasy_cli.support.embedded import async_connect, run_agent, shared_threads, workers_running

    allow_descriptors(DESCRIPTORS + DEVICE_DESCRIPTORS * len(configs))
    connect_as = async_connect(MemoryBroker())
    store = await open_store(f"sqlite:///{store_file}")
    with shared_threads(len(configs)) as thread_of:
        try:
            await store_job(store, job)
            await begin_rounds(store, job, configs)
            async with workers_running(workers, store, connect_as, trust=Trust.ENROLLED):
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(
                            run_agent(
                                config,
                                partial(connect_as, config.device),
                                stop=stop,
                                observe=observe,
                                compute=thread_of(number),
                            )
                        )
                        for number, config in enumerate(configs)
                    ]
                return [task.result()[0] for task in tasks]
        finally:
            await store.close()


def write_report(
    job: Job, runs: Sequence[DeviceRun], folder: Path, *, workers: int, seconds: float, threads: int
) -> None:
    """Print the table, write report.json and report.png."""
    import torch
    from rich.console import Console

    from spliteasy_cli.history import report

    about = {
        "job": job.name,
        "digest": job.digest,
        "workers": workers,
        "seconds": round(seconds, 3),
        "seed": job.spec.seed,
        "torch": torch.__version__,
        "threads": threads,
    }
    report.write_json(folder / "report.json", runs, about)
    Console().print(report.table(runs))
    written = str(folder / "report.json")
    try:
        report.draw(folder / "report.png", runs, f"{job.name}: {len(runs)} devices, {workers} workers")
        written += f" and {folder / 'report.png'}"
    except ModuleNotFoundError as missing:
        typer.echo(f"no picture: {missing.name} is not installed (pip install 'spliteasy[demo]')", err=True)
    typer.echo(f"trained in {seconds:.1f} s; see {written}")
