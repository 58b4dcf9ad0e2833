"""`spliteasy device`: the accounts of devices and workers on the broker, and the jobs they may train."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

import typer

from spliteasy.errors import UserError
from spliteasy.runtime.readable import span
from spliteasy.runtime.urls import split_url
from spliteasy_cli.browser.page import page_link, page_of
from spliteasy_cli.commands.keys import OperatorKeyOption, operator_key
from spliteasy_cli.commands.status import show_table
from spliteasy_cli.options.fleet_key import read_fleet_key
from spliteasy_cli.support.endpoints import BrokerOption, StoreOption, find_url, store_at
from spliteasy_cli.support.identifiers import check_identifier, check_job
from spliteasy_cli.support.log_setup import set_up_logging
from spliteasy_cli.support.sectioned_group import SectionedGroup

if TYPE_CHECKING:
    from deploy.accounts import Accounts, Role
    from server_worker.store import SessionMeta
    from spliteasy_cli.support.enrolment import Enrolment

ManagementOption = Annotated[
    str | None,
    typer.Option(
        "--management",
        envvar="SPLITEASY_MANAGEMENT",
        metavar="URL",
        help="https://operator:password@host:15671 of the broker's management API (?cafile=PATH for an "
        "authority of your own); by default the local stack's.",
        show_default=False,
    ),
]


JobsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--job",
        metavar="JOB",
        help="The job that it may train: NAME or NAME@DIGEST. Again for more; its agent takes the first "
        "unless --job names another.",
        show_default="any",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="The file to write.", show_default="NAME.enrol")
]
AuthorityOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        help="Certificates (PEM) of the broker's authority.",
        show_default="cafile of the broker's URL",
    ),
]


GatewayOption = Annotated[
    str | None,
    typer.Option(
        "--gateway",
        metavar="URL",
        help="wss://host:port of the gateway that the device connects to, in place of the broker.",
        show_default="none",
    ),
]
WorkerOption = Annotated[
    bool, typer.Option("--worker", help="Make an account for workers instead of one for a device.")
]
RotateOption = Annotated[
    bool, typer.Option("--rotate", help="Change the password only, in the file that there is.")
]

WebOption = Annotated[
    bool,
    typer.Option(
        "--web",
        help="Print a link and a QR code that open the training in the device's browser (docs/browser.md). "
        "Needs --gateway and --job.",
    ),
]

WebFleetKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--fleet-key",
        metavar="FILE",
        help="With --web: the key that the devices of a fleet share (`spliteasy fleet-key`).",
        show_default=False,
    ),
]

app = typer.Typer(cls=SectionedGroup, no_args_is_help=True, rich_markup_mode=None)
"""`spliteasy device VERB`."""


@app.command()
def enroll(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The device's id, of at most 63 characters a-z, 0-9 and -.")],
    job: JobsOption = None,
    out: OutOption = None,
    worker: WorkerOption = False,
    ca: AuthorityOption = None,
    rotate: RotateOption = False,
    operator_key_file: OperatorKeyOption = None,
    gateway: GatewayOption = None,
    web: WebOption = False,
    fleet_key: WebFleetKeyOption = None,
    broker: BrokerOption = None,
    store: StoreOption = None,
    management: ManagementOption = None,
) -> None:
    """Make the account of a device on the broker, and write the one file that its agent needs.

    For a device that has an account this makes a new password; --rotate keeps all else that the file says.
    Open connections stay, so that a running agent loses no step: put the new file in the place of the old one
    before the agent has to connect again.
    """
    import asyncio

    set_up_logging(context, "warning")
    check_identifier("NAME", name)
    jobs = job or []
    for each in jobs:
        check_job("--job", each)
    from pydantic import SecretStr

    from deploy.accounts import Role
    from spliteasy_cli.support.enrolment import Enrolment

    url = find_url("broker", broker)
    role = Role.WORKER if worker else Role.DEVICE
    accounts = accounts_at(management, url)
    file = out or Path(f"{name}.enrol")
    password = SecretStr(secrets.token_urlsafe(32))
    if gateway is not None and (worker or rotate):
        raise UserError(
            "--gateway goes neither with --worker nor with --rotate",
            hint="workers connect to the broker itself",
        )
    if web and (gateway is None or not jobs):
        raise UserError(
            "--web needs the gateway that serves the page, and the job that it trains",
            hint="spliteasy device enroll NAME --web --gateway wss://host:port --job JOB",
        )
    if fleet_key is not None and not web:
        raise UserError(
            "--fleet-key goes with --web, whose link holds the key",
            hint="other agents are given it when they start: spliteasy agent --fleet-key FILE",
        )
    shared_key = None if fleet_key is None else read_fleet_key(fleet_key)
    page = page_of(gateway) if web and gateway is not None else None
    if rotate and jobs:
        raise UserError("--rotate changes the password only", hint=f"spliteasy device allow {name} JOB...")
    if rotate:
        enrolment = _enrolled(file, name, role, accounts).model_copy(update={"password": password})
    else:
        enrolment = Enrolment(
            role="worker" if worker else "device",
            account=name,
            password=password,
            broker=_without_account(url) if gateway is None else _gateway_url(gateway),
            ca=_authority(url, ca),
            job=jobs[0] if jobs else None,
            operator_key=None if worker else operator_key(operator_key_file, url),
        )
    if jobs and not worker:  # first: no account is there that may do more
        asyncio.run(_allow(store, name, jobs))
    made: list[bool] = []
    enrolment.write(
        file, before=lambda: made.append(accounts.enroll(name, role, enrolment.password.get_secret_value()))
    )
    typer.echo(f"{name}: {'enrolled' if made[0] else 'has a new password'}; the account is in {file}")
    if page is not None:
        _tell_link(page, enrolment, shared_key)
    else:
        _tell_next(file, enrolment, rotated=rotate, with_job=bool(jobs))


def _tell_link(page: str, enrolment: Enrolment, fleet_key: bytes | None) -> None:
    """Print the link for the phone's owner, and as a code where this is a terminal."""
    from spliteasy_cli.browser.qr import shown

    assert enrolment.job is not None
    link = page_link(
        page,
        device=enrolment.account,
        password=enrolment.password.get_secret_value(),
        job=enrolment.job,
        operator_key=enrolment.operator_key,
        fleet_key=fleet_key,
    )
    if enrolment.operator_key is None:
        typer.echo("its page loads any job: see `spliteasy keygen` and --operator-key", err=True)
    typer.echo("next: give this link to the phone's owner only, since it holds the account's password")
    typer.echo(link)
    code = shown(link)
    if code is not None:
        typer.echo(code)


def _tell_next(file: Path, enrolment: Enrolment, *, rotated: bool, with_job: bool) -> None:
    """Tell the person what to do with the file."""
    if rotated:
        where = f"where {enrolment.account} runs; it reads it when it connects"
        typer.echo(f"next: put {file} in the old one's place {where}")
    elif enrolment.role == "worker":
        typer.echo(f"next: spliteasy worker --enrolment {file}")
    else:
        if enrolment.operator_key is None:
            typer.echo("its agent loads any job: see `spliteasy keygen` and --operator-key", err=True)
        job_option = "" if with_job else " --job JOB"
        typer.echo(f"next, on the device: spliteasy agent --enrolment {file}{job_option} --data DATA")


@app.command()
def revoke(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The device, or the workers' account.")],
    broker: BrokerOption = None,
    management: ManagementOption = None,
) -> None:
    """End an account at once: its connections are closed, its queues deleted, and it can't come back.

    What the server keeps of its sessions stays (`spliteasy session forget` deletes it), and so do its limits.
    """
    set_up_logging(context, "warning")
    check_identifier("NAME", name)
    if not accounts_at(management, find_url("broker", broker)).revoke(name):
        raise UserError(f"nobody is enrolled as {name}", hint="see `spliteasy device list`")
    typer.echo(f"{name}: revoked; its connections are closed, and its queues are gone")


@app.command()
def allow(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The device.")],
    jobs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="JOB...", help="The jobs that it may train, and no others: NAME or NAME@DIGEST."
        ),
    ] = None,
    any_job: Annotated[bool, typer.Option("--any", help="It may train any job.")] = False,
    no_job: Annotated[bool, typer.Option("--none", help="It may train nothing.")] = False,
    store: StoreOption = None,
) -> None:
    """Say which jobs a device may train. This takes effect at once, also on a job that it is training now.

    A training that is not allowed any more stops after the step that it is computing, and can go on from
    there later.
    """
    import asyncio

    set_up_logging(context, "warning")
    check_identifier("NAME", name)
    if (bool(jobs), any_job, no_job).count(True) != 1:
        raise UserError("which jobs?", hint="name them, or give --any or --none")
    for each in jobs or []:
        check_job("JOB", each)
    asyncio.run(_allow(store, name, None if any_job else jobs or []))
    typer.echo(f"{name}: may train {'any job' if any_job else ', '.join(jobs or []) or 'nothing'}")


@app.command("list")
def list_devices(
    context: typer.Context,
    broker: BrokerOption = None,
    store: StoreOption = None,
    management: ManagementOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list, for programs.")] = False,
    devices: Annotated[int, typer.Option(min=1, metavar="N", help="Show so many devices.")] = 100,
    after: Annotated[
        str, typer.Option(metavar="NAME", help="Begin behind this name: the page before ended with it.")
    ] = "",
) -> None:
    """List the enrolled devices: connected or not, last seen, the agent's version, the job and its step."""
    import asyncio

    from spliteasy_cli.watch.enrolled_devices import as_devices, devices_of

    set_up_logging(context, "warning")
    accounts = devices_of(accounts_at(management, find_url("broker", broker)).list(), after)
    page = accounts[:devices]
    found = as_devices(page, *asyncio.run(_stored(store, [account.name for account in page])))
    if as_json:
        import orjson

        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return
    from rich.console import Console

    now = time.time()
    show_table(
        Console(),
        ("device", "connected", "last seen", "version", "job", "step", "may train"),
        [
            (
                each.device,
                "yes" if each.connected else "no",
                "never" if each.seen_at is None else f"{span(now - each.seen_at)} ago",
                each.version or "–",
                each.job or "–",
                "–" if each.step is None else each.step,
                "any job" if each.allowed is None else ", ".join(map(_shortened, each.allowed)) or "nothing",
            )
            for each in found
        ],
        "no devices: spliteasy device enroll NAME",
    )
    if len(accounts) > devices:
        Console().print(f"there are {len(accounts) - devices} more: --after {page[-1].name}", style="dim")


def _enrolled(file: Path, name: str, role: Role, accounts: Accounts) -> Enrolment:
    """Return what the file says of an account. Raises UserError where the file or the account is missing."""
    if not any(account.name == name and account.role is role for account in accounts.list()):
        raise UserError(f"nobody is enrolled as {name}", hint="leave --rotate out")
    from spliteasy_cli.support.enrolment import read_enrolment

    enrolment = read_enrolment(file, role="worker" if role.name == "WORKER" else "device")
    if enrolment.account != name:
        raise UserError(f"{file} is the enrolment of {enrolment.account}, not of {name}")
    return enrolment


async def _allow(store: str | None, device: str, jobs: Sequence[str] | None) -> None:
    async with store_at(store) as open_store:
        await open_store.allow(device, jobs)


async def _stored(
    store: str | None, devices: Sequence[str]
) -> tuple[Sequence[SessionMeta], Mapping[str, tuple[str, ...]]]:
    async with store_at(store) as open_store:
        jobs = await open_store.job_versions()
        names = [f"{job}.{device}" for device in devices for job in jobs]
        return await open_store.sessions_named(names), await open_store.allowed(devices)


def _shortened(job: str) -> str:
    """Return NAME@DIGEST with the first 12 digits of the digest."""
    name, at, digest = job.partition("@")
    return name + at + digest[:12]


def accounts_at(management: str | None, broker: str) -> Accounts:
    """Return the accounts of the virtual host that the broker's URL names."""
    from deploy.accounts import Accounts

    return Accounts(find_url("management", management), vhost=unquote(urlsplit(broker).path[1:]) or "/")


def _gateway_url(url: str) -> str:
    """Raises UserError where it is none, or names an account: that is the device's."""
    try:
        parts = split_url(url)
    except ValueError as error:
        raise UserError(f"the gateway's URL has {error}", hint="wss://host:port") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise UserError("--gateway is not the URL of one", hint="wss://host:port, without an account")
    return url


def _without_account(url: str) -> str:
    """Return the broker's URL as others may see it: without our account and without paths of this machine."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def _authority(url: str, ca: Path | None) -> str | None:
    from spliteasy_cli.support.enrolment import certificates

    cafile = parse_qs(urlsplit(url).query).get("cafile", [None])[0]
    file = ca or (Path(cafile) if cafile else None)
    return certificates(file) if file else None
