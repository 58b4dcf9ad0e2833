"""Agents on devices, over ssh.

    python -m deploy.agents deploy pi@host-a pi@host-b data=photos:load files=photos.py
    python -m deploy.agents deploy --inventory devices.toml
    python -m deploy.agents status|undeploy --inventory devices.toml

A host is user@host[:port]; settings follow it as name=value, those before the first host are for all. The
device is named like the host unless device=NAME says so, and its account is in DEVICE.enrol on this machine
(`spliteasy device enroll DEVICE --job JOB` writes it). Deploying again upgrades and keeps the state; a
version that does not start makes way for the one before. docs/devices.md has the settings.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from deploy.agents.inventory import DeviceHost, read_inventory
from deploy.agents.rollout import Action, Outcome, RolloutBoard, roll_out
from deploy.agents.ssh import Ssh
from deploy.wheel import build_wheel
from spliteasy.errors import SplitEasyError, UserError

AT_ONCE = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 where a host failed, 2 for what can be mended here."""
    arguments = _parser().parse_args(argv)
    try:
        hosts = read_inventory(arguments.hosts, arguments.inventory)
        return _run(arguments, hosts)
    except SplitEasyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print(
            "stopped; a host in the middle of a change of versions brings it to its end by itself",
            file=sys.stderr,
        )
        return 130


def _run(arguments: argparse.Namespace, hosts: Sequence[DeviceHost]) -> int:
    action: Action = arguments.command
    console = Console()
    board = RolloutBoard(hosts, console)
    with tempfile.TemporaryDirectory(prefix="spliteasy-wheel-") as folder:
        wheel = None
        if action == "deploy":
            if arguments.wheel is None:
                console.print("building the wheel")
            wheel = arguments.wheel or build_wheel(Path(folder))
            if not wheel.is_file() or wheel.suffix != ".whl":
                raise UserError(f"{wheel} is no wheel")
        with board.shown():
            outcomes = asyncio.run(
                roll_out(
                    hosts,
                    action,
                    Ssh(tuple(shlex.split(arguments.ssh))),
                    wheel=wheel,
                    delete_state=getattr(arguments, "delete_state", False),
                    at_once=arguments.at_once,
                    tell=board.tell,
                )
            )
    return _summary(outcomes)


def _summary(outcomes: Sequence[Outcome]) -> int:
    failed = [outcome for outcome in outcomes if outcome.failed]
    for outcome in failed:
        print(f"error: {outcome.host.device} at {outcome.host.at}: {outcome.text}", file=sys.stderr)
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} done")
    return 1 if failed else 0


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.agents",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("deploy", "install and start an agent on each host, or upgrade it"),
        ("undeploy", "stop and remove the agents; their state stays"),
        ("status", "what runs on each host"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "hosts", nargs="*", metavar="HOST|NAME=VALUE", help="user@host[:port], or a setting"
        )
        command.add_argument("--inventory", type=Path, metavar="FILE", help="more hosts: lines, or .toml")
        command.add_argument("--ssh", default="", metavar="OPTIONS", help='for ssh: "-i KEY -F CONFIG"')
        command.add_argument(
            "--at-once", type=_count, default=AT_ONCE, metavar="N", help="hosts side by side (8)"
        )
        if name == "deploy":
            command.add_argument(
                "--wheel", type=Path, help="this one; by default it is built from the checkout"
            )
        if name == "undeploy":
            command.add_argument("--delete-state", action="store_true", help="their checkpoints and logs too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
