"""`spliteasy status` and `fleet`: jobs, sessions, workers and queue depths; the rounds of a fleet."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from spliteasy.errors import UserError
from spliteasy.runtime.readable import size, span
from spliteasy_cli.options.verdicts import DEFAULT_VERDICTS, VerdictsOption
from spliteasy_cli.support.endpoints import BrokerOption, StoreOption, broker_at, store_at
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.runner import run

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from broker import Depth
    from server_worker.store import SessionMeta
    from spliteasy_cli.history.verdicts import GateVerdict
    from spliteasy_cli.watch.cluster import ClusterSnapshot
    from spliteasy_cli.watch.fleet_view import FleetView

T = TypeVar("T")
SHORT_DIGEST = 12


def status(
    context: typer.Context,
    broker: BrokerOption = None,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    sessions: Annotated[
        int, typer.Option(min=0, metavar="N", help="Show so many sessions, those that changed last.")
    ] = 50,
    skip: Annotated[
        int, typer.Option(min=0, metavar="N", help="Leave out so many of them: the pages before.")
    ] = 0,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and show sessions and events as they happen.")
    ] = False,
    every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")] = 1.0,
    verdicts: VerdictsOption = DEFAULT_VERDICTS,
) -> None:
    """Show jobs and the gate's verdicts, sessions and their step, workers, shards and queue depths."""
    import asyncio

    set_up_logging(context, "warning")
    if watch:
        if as_json:
            raise UserError("--json and --watch do not go together", hint="leave one of them out")
        run(lambda stop: _watch(broker, store, stop, every_s))
        return
    from spliteasy_cli.history.verdicts import read_verdicts

    picture, kept = asyncio.run(_look(broker, store, sessions, skip)), read_verdicts(verdicts)
    if as_json:
        import orjson

        typer.echo(orjson.dumps(as_object(picture, kept), option=orjson.OPT_INDENT_2).decode())
    else:
        from rich.console import Console

        show(picture, kept, Console())


def fleet(
    context: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job: NAME, or NAME@DIGEST for one version.")],
    last: Annotated[int, typer.Option(min=1, metavar="N", help="Show so many rounds, the newest last.")] = 10,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Let a fleet go on that was paused, since too many rounds were void."),
    ] = False,
) -> None:
    """Show the rounds of devices that train one model: who takes part, who is late, and each round's mean."""
    import asyncio

    from spliteasy_cli.watch.fleet_view import fleet_as_object, show_fleet

    set_up_logging(context, "warning")
    view = asyncio.run(_fleet(job, store, resume=resume))
    if as_json:
        import orjson

        typer.echo(orjson.dumps(fleet_as_object(view), option=orjson.OPT_INDENT_2).decode())
    else:
        show_fleet(view, last)


async def _fleet(job: str, store: str | None, *, resume: bool) -> FleetView:
    from spliteasy_cli.watch.fleet_view import read_fleet, resume_fleet

    async with store_at(store) as opened:
        view = await read_fleet(opened, job)
        if resume:
            await resume_fleet(opened, view)
            view = await read_fleet(opened, job)
        return view


async def _watch(broker: str | None, store: str | None, stop: asyncio.Event, every_s: float) -> None:
    from rich.console import Console

    from spliteasy_cli.watch.cluster import ClusterClient
    from spliteasy_cli.watch.live_table import watch
    from spliteasy_cli.watch.loss_curves import Curves

    async with ClusterClient(broker, store) as cluster:
        curves = Curves(cluster)

        async def look() -> ClusterSnapshot:
            picture = await cluster.look()
            await curves.look(picture)
            return picture

        await watch(look, console=Console(), stop=stop, interval_s=every_s, clock=time.time, loss=curves.last)


async def _look(broker: str | None, store: str | None, newest: int, skip: int) -> ClusterSnapshot:
    from spliteasy_cli.watch.cluster import take_snapshot

    async with store_at(store) as open_store, broker_at(broker) as transport:
        return await take_snapshot(transport, open_store, newest=newest, skip=skip)


def as_object(picture: ClusterSnapshot, verdicts: Mapping[str, GateVerdict]) -> dict[str, Any]:
    """Return the picture for `--json`: times in Unix seconds, a queue that does not exist is null.

    `gate` has the verdict on each version that has one, by digest.
    """
    versions = [digest for digests in picture.jobs.values() for digest in digests]
    return {
        "jobs": {name: list(digests) for name, digests in picture.jobs.items()},
        "gate": {
            digest: {**verdicts[digest].model_dump(mode="json"), "violations": verdicts[digest].violations}
            for digest in versions
            if digest in verdicts
        },
        "session_count": picture.session_count,
        "active_count": picture.active,
        "sessions": [as_record(meta) for meta in picture.sessions],
        "workers": [
            {
                "worker": worker.worker,
                "state": worker.state,
                "host": worker.host,
                "pid": worker.pid,
                "sessions": worker.sessions,
                "shards": list(worker.shards),
                "steps": worker.steps,
                "started_at": worker.started_at,
            }
            for worker in picture.workers
        ],
        "queues": {
            "front": _depth(picture.front),
            "shards": [_depth(depth) for depth in picture.shards],
            "dead": _depth(picture.dead),
        },
    }


def as_record(meta: SessionMeta) -> dict[str, Any]:
    """Return a session for `--json`."""
    return {
        "session": meta.session,
        "job_digest": meta.job_digest,
        "step": meta.committed,
        "total_steps": meta.total_steps or None,
        "attempt": meta.attempt.number,
        "resumed_at": meta.resume_step,
        "oldest_restorable": meta.snapshots[0],
        "snapshots": list(meta.snapshots),
        "fence": meta.owner.fence,
        "owner": meta.owner.nonce,
        "closed": meta.closed,
        "paused": meta.paused,
        "agent": meta.agent or None,
        "updated_at": meta.updated_at,
        "log_bytes": meta.log_bytes,
        "waiting_bytes": meta.waiting_bytes,
    }


def show_sessions(sessions: Sequence[SessionMeta], console: Console) -> None:
    """Print the sessions as a table."""
    now = time.time()
    show_table(
        console,
        ("session", "step", "state", "attempt", "can restore", "log", "last change"),
        [
            (
                meta.session,
                meta.committed,
                "finished" if meta.closed else "paused" if meta.paused else "open",
                meta.attempt.number,
                f"{meta.snapshots[0]} to {meta.committed}",
                size(meta.log_bytes),
                f"{span(now - meta.updated_at)} ago",
            )
            for meta in sessions
        ],
        "no sessions: spliteasy agent --job JOB --device NAME --data MODULE:FUNCTION",
    )


def _depth(depth: Depth | None) -> dict[str, int] | None:
    return None if depth is None else {"messages": depth.messages, "consumers": depth.consumers}


def show(picture: ClusterSnapshot, verdicts: Mapping[str, GateVerdict], console: Console) -> None:
    """Print it as tables; what is empty says what to type."""
    from spliteasy_cli.history.verdicts import line_of
    from spliteasy_cli.watch.cluster import ACTIVE_S

    now = time.time()
    show_table(
        console,
        ("job", "newest", "versions", "sessions", "gate"),
        [
            (
                name,
                digests[0][:SHORT_DIGEST],
                len(digests),
                picture.by_job.get(name, 0),
                line_of(verdicts, digests[0]),
            )
            for name, digests in sorted(picture.jobs.items())
        ],
        "no jobs: spliteasy submit JOB.toml",
    )
    show_sessions(picture.sessions, console)
    if not picture.complete:
        console.print(
            f"{len(picture.sessions)} of {picture.session_count} sessions, those that changed last first "
            f"({picture.active} within the last {ACTIVE_S:.0f} s); --sessions and --skip show others, "
            "`spliteasy session list` all by name",
            style="dim",
        )
    show_table(
        console,
        ("worker", "state", "host", "pid", "sessions", "shards", "steps", "up"),
        [
            (
                worker.worker,
                worker.state,
                worker.host,
                worker.pid,
                worker.sessions,
                ",".join(f"{shard:02d}" for shard in worker.shards) or "–",
                worker.steps,
                span(now - worker.started_at),
            )
            for worker in picture.workers
        ],
        "no workers: spliteasy worker",
    )
    show_table(
        console,
        ("queue", "waiting", "consumers"),
        [
            (name, depth.messages, depth.consumers)
            for name, depth in (
                ("front", picture.front),
                *((f"shard {n:02d}", depth) for n, depth in enumerate(picture.shards)),
                ("dead", picture.dead),
            )
            if depth is not None and (name in ("front", "dead") or depth.messages or not depth.consumers)
        ],
        "no queues yet: workers declare them when they start",
    )
    if any(depth is not None for depth in picture.shards):
        console.print("shards with a consumer and nothing waiting are left out", style="dim")


def show_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[object]], if_empty: str
) -> None:
    """Print a table; `if_empty` where it has no rows."""
    from rich import box
    from rich.table import Table

    if not rows:
        console.print(if_empty, style="dim", markup=False, highlight=False)
        console.print()
        return
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int) for row in rows)
        grid.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(str(value) for value in row))
    console.print(grid)
