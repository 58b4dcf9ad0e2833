"""Run the link emulator as a process of its own.

    python -m benchmarks.emulator --profile lte --listen 127.0.0.1:0 --to 127.0.0.1:5672

The first line on standard output is JSON: {"ports": […], "control": PORT or null}. Commands (`control`)
come over `--control`, or with `--stdin` over standard input, whose end ends the process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import selectors
import signal
import sys

from benchmarks.emulator.control import obey, serve
from benchmarks.emulator.link import LinkEmulator
from benchmarks.emulator.profiles import PROFILES


def main() -> None:
    arguments = _arguments()
    # Unlike epoll, select takes timeouts in microseconds: pieces arrive when they are due.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with LinkEmulator(
        arguments.to,
        PROFILES[arguments.profile],
        listen=arguments.listen,
        ports=arguments.ports,
        seed=arguments.seed,
        timer_late_s=0.0,
    ) as link:
        control = await serve(link, *arguments.control) if arguments.control is not None else None
        control_port = control.sockets[0].getsockname()[1] if control is not None else None
        print(json.dumps({"ports": link.ports, "control": control_port}), flush=True)
        if arguments.stdin:
            reader = asyncio.StreamReader()
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
            listening = asyncio.create_task(_listen(link, reader, stop))
        await stop.wait()
        if arguments.stdin:
            listening.cancel()
        if control is not None:
            control.close()


async def _listen(link: LinkEmulator, reader: asyncio.StreamReader, stop: asyncio.Event) -> None:
    while line := await reader.readline():
        print(obey(link, line.decode(errors="replace")), flush=True)
    stop.set()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emulator", description="Emulate a link.")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="lte")
    parser.add_argument("--listen", type=_address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--to", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--ports", type=int, default=1, help="on how many ports to listen")
    parser.add_argument("--control", type=_address, metavar="HOST:PORT", help="a socket for commands")
    parser.add_argument("--stdin", action="store_true", help="take commands from standard input")
    parser.add_argument("--seed", type=int, default=0, help="of the jitter")
    return parser.parse_args()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    main()
