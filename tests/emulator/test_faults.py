"""Cuts, one-way cuts, stalls, refusals, moves: what each end of a connection sees."""

from __future__ import annotations

import asyncio
import os

import pytest

from benchmarks.emulator import PROFILES, Direction, LinkEmulator, Profile
from benchmarks.emulator.connection import reset
from tests.emulator.ends import (
    DEADLINE_S,
    Server,
    connected,
    is_reset,
    is_silent,
    reachable,
    read,
    read_all,
    read_until_reset,
    serving,
)

UP, DOWN = Direction.UP, Direction.DOWN
SLOW = Profile(up_bytes_s=2e6, down_bytes_s=3e6, latency_s=0.003, jitter_s=0.002)


@pytest.mark.parametrize("profile", [PROFILES["open"], SLOW], ids=["open", "slow"])
async def test_bytes_come_through_unchanged_both_ways_and_so_do_ends(profile: Profile) -> None:
    up, down = os.urandom(300_000), os.urandom(200_000)
    async with serving() as server, LinkEmulator(server.address, profile) as link:
        for _ in range(2):
            async with connected(link.port) as (reader, writer):
                far_reader, far_writer = await server.accept()
                writer.write(up)
                writer.write_eof()
                far_writer.write(down)
                assert await read_all(far_reader) == up
                assert await read(reader, len(down)) == down
                far_writer.write(b"after the other end")
                far_writer.write_eof()
                assert await read_all(reader) == b"after the other end"
        assert link.traffic(UP).taken == link.traffic(UP).delivered == 2 * len(up)
        assert link.traffic(DOWN).delivered == 2 * (len(down) + 19)
        assert [one.traffic[UP].delivered for one in link.connections] == [len(up)] * 2


async def test_a_cut_resets_both_ends_and_new_connections_work_at_once() -> None:
    async with serving() as server, LinkEmulator(server.address) as link:
        async with connected(link.port) as (reader, _):
            far_reader, _ = await server.accept()
            link.cut()
            assert await is_reset(reader)
            assert await is_reset(far_reader)
            assert [one.open for one in link.connections] == [False]
        async with connected(link.port) as (_, writer):
            far_reader, _ = await server.accept()
            writer.write(b"again")
            assert await read(far_reader, 5) == b"again"


async def greet(server: Server) -> None:
    while True:
        _, writer = await server.accepted.get()
        writer.write(b"!")


async def test_a_cut_for_some_time_refuses_until_then() -> None:
    async with serving() as server, LinkEmulator(server.address) as link:
        greeting = asyncio.create_task(greet(server))
        link.cut(for_s=0.2)
        assert not await reachable(link.port)
        async with asyncio.timeout(DEADLINE_S):
            while link.refusing:
                assert not await reachable(link.port) or not link.refusing
        assert await reachable(link.port)
        link.refuse()
        assert not await reachable(link.port)
        link.restore()
        assert await reachable(link.port)
        greeting.cancel()


async def test_a_cut_can_be_set_for_a_time() -> None:
    async with serving() as server, LinkEmulator(server.address) as link, connected(link.port) as (reader, _):
        await server.accept()
        link.cut(after_s=0.05)
        assert link.cuts == 0
        assert await is_reset(reader)
        assert link.cuts == 1


@pytest.mark.parametrize("direction", [UP, DOWN])
@pytest.mark.parametrize("profile", [PROFILES["open"], SLOW], ids=["open", "slow"])
async def test_a_cut_at_a_byte_lets_exactly_those_before_it_through(
    direction: Direction, profile: Profile
) -> None:
    data = os.urandom(400_000)
    async with serving() as server, LinkEmulator(server.address, profile) as link:
        async with connected(link.port) as near:
            far = await server.accept()
            (_, writer), (reader, _) = (near, far) if direction is UP else (far, near)
            link.cut_after(123_457, direction)
            writer.write(data)
            received = await read_until_reset(reader)
            assert received == data[:123_457]
            assert link.traffic(direction).delivered == 123_457
        async with connected(link.port) as (_, writer):
            reader, _ = await server.accept()
            writer.write(data)
            assert await read(reader, len(data)) == data, "one cut only"


async def test_a_one_way_cut_silences_one_direction_for_good_and_leaves_the_other() -> None:
    async with serving() as server, LinkEmulator(server.address) as link:
        async with connected(link.port) as (reader, writer):
            far_reader, far_writer = await server.accept()
            writer.write(b"1")
            assert await read(far_reader, 1) == b"1"
            link.cut(UP)
            writer.write(b"2")
            far_writer.write(b"still here")
            assert await read(reader, 10) == b"still here"
            writer.close()
            assert await is_silent(far_reader), "the server must not learn that its client is gone"
            assert link.traffic(UP).taken == 2
            assert link.traffic(UP).delivered == 1
        async with connected(link.port) as (_, writer):
            far_reader, _ = await server.accept()
            writer.write(b"3")
            assert await read(far_reader, 1) == b"3", "new connections are whole"


async def test_a_server_that_dies_behind_a_one_way_cut_is_not_heard_of() -> None:
    async with serving() as server, LinkEmulator(server.address) as link, connected(link.port) as (reader, _):
        _, far_writer = await server.accept()
        link.cut(DOWN)
        far_writer.transport.abort()
        assert await is_silent(reader)


async def test_a_stall_passes_nothing_closes_nothing_and_loses_nothing() -> None:
    async with (
        serving() as server,
        LinkEmulator(server.address) as link,
        connected(link.port) as (reader, writer),
    ):
        far_reader, far_writer = await server.accept()
        link.stall()
        writer.write(b"up")
        far_writer.write(b"down")
        assert await is_silent(far_reader)
        assert await is_silent(reader)
        link.resume(DOWN)
        assert await read(reader, 4) == b"down"
        assert await is_silent(far_reader)
        link.resume()
        assert await read(far_reader, 2) == b"up"


async def test_a_receiver_that_does_not_read_stops_its_sender() -> None:
    size = 64 << 20
    async with (
        serving(limit=1 << 16) as server,
        LinkEmulator(server.address) as link,
        connected(link.port) as (_, writer),
    ):
        far_reader, _ = await server.accept()
        writer.write(bytes(size))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await writer.drain()
        taken = link.traffic(UP).taken
        assert taken < 8 << 20
        writer.write_eof()
        received = 0
        async with asyncio.timeout(DEADLINE_S):
            while data := await far_reader.read(1 << 20):
                received += len(data)
        assert received == size


async def test_an_end_that_dies_is_reset_at_the_other() -> None:
    async with serving() as server, LinkEmulator(server.address) as link, connected(link.port) as (reader, _):
        _, far_writer = await server.accept()
        far_writer.write(b"x")
        await read(reader, 1)
        reset(far_writer)
        assert await is_reset(reader)


async def test_a_server_that_is_not_there_resets_its_clients() -> None:
    async with serving() as server:
        address = server.address
    async with LinkEmulator(address) as link, connected(link.port) as (reader, _):
        assert await is_reset(reader)


async def test_back_under_another_address() -> None:
    async with serving() as server, LinkEmulator(server.address, ports=2) as link:
        greeting = asyncio.create_task(greet(server))
        first, second = link.ports
        link.use_port(first)
        assert [await reachable(port) for port in link.ports] == [True, False]
        async with connected(first) as (reader, _):
            await read(reader, 1)
            link.use_port(second)
            assert await is_reset(reader)
        assert [await reachable(port) for port in link.ports] == [False, True]
        with pytest.raises(ValueError, match="not one of"):
            link.use_port(1)
        greeting.cancel()


async def test_new_connections_go_to_another_server_and_old_ones_stay() -> None:
    async with serving() as old, serving() as new, LinkEmulator(old.address) as link:
        before_reader, before = await asyncio.open_connection("127.0.0.1", link.port)
        far_before, _ = await old.accept()
        link.lead_to(new.address)
        async with connected(link.port) as (_, after):
            far_after, _ = await new.accept()
            before.write(b"old")
            after.write(b"new")
            assert await read(far_before, 3) == b"old"
            assert await read(far_after, 3) == b"new"
        link.cut()
        assert await is_reset(before_reader)
        before.close()


async def test_leaving_ends_all_that_is_open() -> None:
    async with serving() as server:
        async with LinkEmulator(server.address, SLOW) as link:
            streams = [await asyncio.open_connection("127.0.0.1", link.port) for _ in range(3)]
            for _, writer in streams:
                writer.write(bytes(1 << 20))
            await server.accept()
            port = link.port
        for reader, writer in streams:
            assert await is_reset(reader)
            writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
