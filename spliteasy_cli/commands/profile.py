"""`spliteasy profile`: measure a device, for `spliteasy plan --profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import LinkError, UserError
from spliteasy_cli.options.threads import DEFAULT_THREADS, ThreadsOption, torch_threads
from spliteasy_cli.support.log_setup import set_up_logging

if TYPE_CHECKING:
    from spliteasy.planning.profile import LinkProfile, Profile


def profile(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file for the profile.")] = Path(
        "device.json"
    ),
    broker: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Measure the link to this broker too.", show_default=False),
    ] = None,
    threads: ThreadsOption = DEFAULT_THREADS,
) -> None:
    """Measure this device: convolution, matrix and memory throughput, the pipeline's overhead, the link.

    Run it where the agent will run, with as many threads. The link is measured by sending some seconds'
    worth of frames to a reply queue that this command declares; the broker's account must be allowed to.
    """
    import asyncio

    set_up_logging(context, "error")
    with torch_threads(threads):
        found = asyncio.run(measure(broker))
    from spliteasy.runtime.durable_files import write_file

    write_file(output, found.model_dump_json(indent=1).encode() + b"\n")
    compute, overhead = found.compute, found.overhead
    typer.echo(f"convolution  {compute.convolution_flop_s / 1e9:.1f} GFLOP/s, {threads} thread(s)")
    typer.echo(f"matmul       {compute.matmul_flop_s / 1e9:.1f} GFLOP/s")
    typer.echo(f"memory       {compute.memory_bytes_s / 1e9:.1f} GB/s")
    if overhead is not None:
        typer.echo(
            f"pipeline     {overhead.round_trip_s * 1e3:.1f} ms a round trip,"
            f" {overhead.byte_s * 1e9:.2f} ns a byte"
        )
    if found.link is not None:
        up, down = (rate * 8 / 1e6 for rate in (found.link.up_bytes_s, found.link.down_bytes_s))
        round_trip = f"round trip {found.link.rtt_s * 1e3:.1f} ms"
        typer.echo(f"link         up {up:.2f} Mbit/s, down {down:.2f} Mbit/s, {round_trip}")
    typer.echo(f"written to {output}; next: spliteasy plan job.toml --profile {output}", err=True)


async def measure(broker: str | None) -> Profile:
    """Measure everything. Raises UserError where the broker can't be measured."""
    import torch

    from spliteasy.planning.profile import Profile, machine, measure_compute
    from spliteasy_cli.probes.pipeline import embedded_overhead

    link = await _link(broker) if broker is not None else None
    return Profile(
        machine=machine(),
        torch=torch.__version__,
        compute=measure_compute(),
        link=link,
        overhead=await embedded_overhead(),
    )


async def _link(broker: str) -> LinkProfile:
    from broker import connect
    from spliteasy_cli.probes.link import measure_link

    try:
        transport = await connect(broker)
        try:
            return await measure_link(transport)
        finally:
            await transport.close()
    except LinkError as error:
        raise UserError(
            f"the link can't be measured: {error.message}",
            hint="leave --broker out, or use an account that may publish to queues, as the local stack's",
        ) from error
