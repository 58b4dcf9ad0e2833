"""The emulator as a process of its own, commanded over its standard input and a control socket."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.emulator import LinkEmulator
from benchmarks.emulator.control import obey
from tests.emulator.ends import DEADLINE_S, connected, is_reset, is_silent, read, serving

ROOT = Path(__file__).resolve().parents[2]


async def test_it_carries_obeys_counts_and_ends_with_its_standard_input() -> None:
    async with serving() as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.emulator", "--profile", "open", "--stdin"),
            *("--to", f"127.0.0.1:{server.address[1]}", "--control", "127.0.0.1:0", "--ports", "2"),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(DEADLINE_S):
                hello = json.loads(await process.stdout.readline())
            assert len(hello["ports"]) == 2
            async with (
                connected(hello["ports"][0]) as (reader, writer),
                connected(hello["control"]) as control,
            ):
                far_reader, _ = await server.accept()
                writer.write(b"hello")
                assert await read(far_reader, 5) == b"hello"
                assert (await ask(*control, "stats"))["up"] == {"taken": 5, "delivered": 5}
                assert not (await ask(*control, "explode"))["ok"]
                process.stdin.write(b"cut\n")
                async with asyncio.timeout(DEADLINE_S):
                    assert json.loads(await process.stdout.readline()) == {"ok": True}
                assert await is_reset(reader)
                stats = await ask(*control, "stats")
                assert stats["cuts"] == 1
                assert [one["open"] for one in stats["connections"]] == [False]
            process.stdin.close()
            async with asyncio.timeout(DEADLINE_S):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: str) -> dict[str, Any]:
    writer.write(line.encode() + b"\n")
    async with asyncio.timeout(DEADLINE_S):
        answer = json.loads(await reader.readline())
    assert isinstance(answer, dict)
    return answer


async def test_each_command_does_what_its_method_does() -> None:
    async with serving() as server, LinkEmulator(server.address, ports=2) as link:
        async with connected(link.port) as (reader, writer):
            far_reader, far_writer = await server.accept()
            assert ok(link, "stall up")
            writer.write(b"1")
            far_writer.write(b"2")
            assert await read(reader, 1) == b"2"
            assert await is_silent(far_reader)
            assert ok(link, "resume")
            assert await read(far_reader, 1) == b"1"
            assert ok(link, "cut-after 2 down 60")
            far_writer.write(b"345")
            assert await read(reader, 2) == b"34"
            assert await is_reset(reader)
        assert link.refusing
        assert ok(link, "restore")
        assert not link.refusing
        assert ok(link, "refuse")
        assert link.refusing
        assert ok(link, f"use {link.ports[1]}")
        assert ok(link, "profile 3g")
        assert link.profile.latency_s == 0.075
        assert ok(link, "cut up 0.5")


async def test_a_bad_command_is_answered_and_changes_nothing() -> None:
    async with serving() as server, LinkEmulator(server.address) as link:
        before = link.profile
        for line in (
            "",
            "what",
            "profile 9g",
            "profile",
            "cut x",
            "cut-after 5",
            "cut-after up",
            "use",
            "use 1",
        ):
            assert not ok(link, line)
        assert (link.cuts, link.profile, link.refusing) == (0, before, False)


def ok(link: LinkEmulator, line: str) -> bool:
    return bool(json.loads(obey(link, line))["ok"])
