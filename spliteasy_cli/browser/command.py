"""`spliteasy browser`: a page on this machine that trains a job, with everything else in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError
from spliteasy_cli.commands.submit import JobFile, create_job
from spliteasy_cli.options.fleet_key import own_fleet_key
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.runner import run

if TYPE_CHECKING:
    import asyncio

STORE_FILE = "browser.sqlite"


def browser(
    context: typer.Context,
    job_file: JobFile,
    devices: Annotated[
        int, typer.Option(min=1, max=100, help="The number of devices: each link is for one of them.")
    ] = 1,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Examples that the page offers, so that nobody has to bring data: JSON, {"inputs": '
            '[[…], …], "labels": […]}.',
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The page's port; 0: a free one.")] = 8765,
    out: Annotated[
        Path | None, typer.Option(help="The folder for the store.", show_default="runs/JOB-browser")
    ] = None,
) -> None:
    """Train a job in a browser on this machine: no broker or store to install.

    Serves a page, and prints a link to open. The page trains head and tail
    on what is drawn or given there; the body trains in this process.
    """
    set_up_logging(context, "warning")
    try:
        from spliteasy_cli.browser.embedded import page_served
    except ModuleNotFoundError as missing:
        raise UserError(
            f"the gateway needs the package {missing.name}", hint="pip install 'spliteasy[gateway]'"
        ) from None
    offered = None if samples is None else _read(samples)
    job = create_job(job_file)
    folder = out or Path("runs") / f"{job.name}-browser"
    folder.mkdir(parents=True, exist_ok=True)
    fleet_key = own_fleet_key(folder, None) if job.spec.fleet.ends_leave else None
    names = [f"browser-{number + 1}" for number in range(devices)]

    async def main(stop: asyncio.Event) -> None:
        served_page = page_served(
            job, folder / STORE_FILE, devices=names, port=port, samples=offered, fleet_key=fleet_key
        )
        async with served_page as served:
            typer.echo("open in a browser on this machine; Ctrl-C ends it")
            for device, link in served.links.items():
                typer.echo(f"{device}: {link}")
            await stop.wait()

    run(main, on_stop="stopping")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"the samples {file} can't be read: {reason}") from None
