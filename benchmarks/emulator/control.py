"""Commands in words, for an emulator in another process.

    profile NAME                        set_profile
    cut [up|down] [FOR_S]               cut
    cut-after BYTES up|down [FOR_S]     cut_after
    refuse, restore                     refuse, restore
    stall [up|down], resume [up|down]   stall, resume
    use PORT                            use_port
    stats                               bytes each way, in total and by connection

Each line is answered by one line of JSON: {"ok": true, …} or {"ok": false, "error": "…"}.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from benchmarks.emulator.connection import Connection
from benchmarks.emulator.line import Direction
from benchmarks.emulator.link import LinkEmulator
from benchmarks.emulator.profiles import PROFILES


def obey(link: LinkEmulator, line: str) -> str:
    """Do what the line says; the answer. Never raises for a bad line."""
    try:
        answer: dict[str, Any] = {"ok": True, **_do(link, line.split())}
    except (ValueError, KeyError, IndexError) as error:
        answer = {"ok": False, "error": f"{line.strip()!r}: {error!r}"}
    return json.dumps(answer)


async def serve(link: LinkEmulator, host: str, port: int) -> asyncio.Server:
    """Return a control socket: lines in, lines out."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(obey(link, line.decode(errors="replace")).encode() + b"\n")
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    return await asyncio.start_server(talk, host, port)


def _do(link: LinkEmulator, words: list[str]) -> dict[str, Any]:
    command, *arguments = words
    direction = next((Direction(word) for word in arguments if word in ("up", "down")), None)
    numbers = (
        [float(word) for word in arguments if word not in ("up", "down")] if command != "profile" else []
    )
    match command:
        case "profile":
            link.set_profile(PROFILES[arguments[0]])
        case "cut":
            link.cut(direction, for_s=numbers[0] if numbers else None)
        case "cut-after":
            if direction is None:
                raise ValueError("up or down is missing")
            link.cut_after(int(numbers[0]), direction, for_s=numbers[1] if len(numbers) > 1 else None)
        case "refuse":
            link.refuse()
        case "restore":
            link.restore()
        case "stall":
            link.stall(direction)
        case "resume":
            link.resume(direction)
        case "use":
            link.use_port(int(numbers[0]))
        case "stats":
            return _stats(link)
        case _:
            raise ValueError("no such command")
    return {}


def _stats(link: LinkEmulator) -> dict[str, Any]:
    return {
        "cuts": link.cuts,
        **{direction.value: _counts(link.traffic(direction)) for direction in Direction},
        "connections": [_connection(connection) for connection in link.connections],
    }


def _connection(connection: Connection) -> dict[str, Any]:
    each = {direction.value: _counts(connection.traffic[direction]) for direction in Direction}
    return {"port": connection.port, "open": connection.open, **each}


def _counts(traffic: Any) -> dict[str, int]:
    return {"taken": traffic.taken, "delivered": traffic.delivered}
