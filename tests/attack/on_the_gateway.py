"""Attacks on a gateway, while another device trains through it: that one must end with the right bits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp

from broker import connect
from broker.gateway import wire
from broker.gateway.limits import GatewayLimits
from broker.gateway.server import Gateway, serve
from broker.gateway.upstream import broker_upstream
from broker.gateway.wire import Kind, Packet
from broker.protocol.frames import to_frames
from broker.protocol.messages import new_nonce
from broker.transport.topology import FRONT, reply_slot, uplink_key
from deploy.nodes.native import HOST
from tests.attack.arena import Arena
from tests.attack.hostile import Hostile, Undefended
from tests.broker.gateway_for_tests import RawDevice, raw_device

MIB = 1 << 20
ELSEWHERE = "127.0.0.2"
"""The address of who attacks by numbers, as it would be another machine's."""
THOUSANDS = 2000
PAGE = "https://train.example"


@asynccontextmanager
async def attacked(arena: Arena, **limits: Any) -> AsyncIterator[tuple[Gateway, int]]:
    """A gateway and its port; at the end, a device that was trained through it meanwhile must be done."""
    url = arena.node.url(arena.vhost)
    gateway = Gateway(broker_upstream(url), limits=GatewayLimits(**limits), origins=[PAGE])
    async with serve(gateway, host=HOST, port=0) as port:
        victim = arena.new_device()
        training = asyncio.create_task(
            arena.train(
                victim, connect=lambda: connect(f"ws://{victim}:{arena.password(victim)}@{HOST}:{port}")
            )
        )
        try:
            yield gateway, port
            result = await training  # which compares the bits
        finally:
            training.cancel()
            await asyncio.gather(training, return_exceptions=True)
    if not result.done:
        raise Undefended("the device beside it could not train")


@asynccontextmanager
async def enrolled(attacker: Hostile, port: int) -> AsyncIterator[RawDevice]:
    """The attacker behind the gateway, with its account."""
    async with raw_device(port, source=ELSEWHERE) as device:
        welcome = await device.hello(attacker.name, attacker.arena.password(attacker.name))
        if welcome is None or welcome.kind is not Kind.WELCOME:
            raise AssertionError("the attacker's account was not accepted")
        yield device


async def speak_as_another_by_the_gateway(attacker: Hostile) -> str:
    """Publish under another device's key, have replies sent to another, read what others are sent."""
    other = reply_slot("phone-999", 0).name
    said = ""
    async with attacked(attacker.arena) as (_, port), enrolled(attacker, port) as device:
        for packet in (
            Packet(kind=Kind.PUBLISH, number=1, text=uplink_key("phone-999", 3), body=b"x"),
            Packet(kind=Kind.PUBLISH, number=1, text=uplink_key(f"{attacker.name}0", 3), body=b"x"),
            Packet(kind=Kind.PUBLISH, number=1, text=f"{attacker.key}\n{other}", body=b"x"),
            Packet(kind=Kind.DECLARE, number=1, text=other),
            Packet(kind=Kind.SUBSCRIBE, number=1, text=other, argument=1),
            Packet(kind=Kind.SUBSCRIBE, number=1, text=FRONT, argument=1),
        ):
            await device.send(packet)
            answer = await device.packet()
            if answer is None or answer.kind is not Kind.FAILED:
                raise Undefended(f"{packet.kind.name} {packet.text} passed")
            said = answer.text
    return f"gateway: {said}"


async def come_from_a_foreign_page(attacker: Hostile) -> str:
    """Connect from a page of somebody else's."""
    async with attacked(attacker.arena) as (_, port):
        for origin in ("https://evil.example", f"{PAGE}.evil.example", "http://train.example", "null"):
            try:
                async with raw_device(port, origin=origin):
                    raise Undefended(f"{origin} could connect")
            except aiohttp.WSServerHandshakeError as refused:
                if refused.status != 403:
                    raise
    return "gateway: HTTP 403, the origin is not named"


async def guess_accounts_at_the_gateway(attacker: Hostile) -> str:
    """Wrong passwords, and accounts that the broker lets in from its own machine."""
    said = ""
    async with attacked(attacker.arena) as (_, port):
        for account, password in (
            (attacker.name, "wrong"),
            ("guest", "guest"),
            ("workers", ""),
            ("a" * 900, "x"),
        ):
            async with raw_device(port, source=ELSEWHERE) as device:
                answer = await device.hello(account, password)
                if answer is None or answer.kind is not Kind.FAILED:
                    raise Undefended(f"{account} was let in")
                said = answer.text
    return f"gateway: {said}"


async def send_the_gateway_too_much_at_once(attacker: Hostile) -> str:
    """A message of 40 MiB, which no frame is."""
    async with attacked(attacker.arena) as (_, port), enrolled(attacker, port) as device:
        with suppress(ConnectionError):
            await device.socket.send_bytes(bytes(40 * MIB))
        code = await device.closed()
    if code not in (1009, 1006):
        raise Undefended(f"closed with {code}")
    return "gateway: closes the connection, a message is too large"


async def hide_bytes_in_packets(attacker: Hostile) -> str:
    """Bytes after a packet, between its parts and after a frame: a channel that nobody looks at."""
    said = ""
    async with attacked(attacker.arena) as (_, port):
        whole = wire.encode_packet(Packet(kind=Kind.END, number=1, argument=1))
        padded = bytearray(wire.encode_packet(Packet(kind=Kind.DECLARE, number=1, text="abc")))
        padded[-1] = 1
        for message in (whole + b"hidden", bytes(padded), whole[:12] + b"hide"):
            async with enrolled(attacker, port) as device:
                await device.socket.send_bytes(message)
                said = await device.refusal()
                await device.closed()
        async with enrolled(attacker, port) as device:
            (frame,) = to_frames(b"{}", message_id=new_nonce())
            await device.send(
                Packet(
                    kind=Kind.PUBLISH,
                    number=1,
                    text=f"{attacker.key}\n{attacker.queue}",
                    body=frame + b"hidden",
                )
            )
            reason = await attacker.dead.of(attacker.name)
    return f"gateway: {said[:40]}…; worker: {reason[:40]}"


async def flood_the_gateway_with_frames(attacker: Hostile) -> str:
    """Frames as fast as they go, without a look at an answer."""
    limits = {"frames_in_flight": 8, "in_flight_bytes": 2 * MIB}
    async with attacked(attacker.arena, **limits) as (gateway, port), enrolled(attacker, port) as device:
        most = 0
        for number in range(1, 400):
            text = f"{attacker.key}\n{attacker.queue}"
            sending = asyncio.create_task(
                device.send(Packet(kind=Kind.PUBLISH, number=number, text=text, body=bytes(100_000)))
            )
            await asyncio.wait({sending}, timeout=5.0)
            most = max(most, gateway.budgets.in_flight_bytes)
            if not sending.done():  # the gateway reads no more, since no answers are taken
                sending.cancel()
                break
        if most > 3 * MIB:
            raise Undefended(f"{most} bytes in flight")
    return f"gateway: reads no more with {most >> 10} KiB in flight"


async def read_nothing_of_what_comes(attacker: Hostile) -> str:
    """Ask for 1000 deliveries of 1 MiB, and read none."""
    async with (
        attacked(attacker.arena, slow_reader_s=1.0) as (gateway, port),
        enrolled(attacker, port) as device,
    ):
        workers = await connect(attacker.arena.node.url(attacker.arena.vhost))
        queue = reply_slot(attacker.name, 9)
        await device.send(Packet(kind=Kind.DECLARE, number=1, text=queue.name))
        await device.packet()
        for _ in range(32):
            await workers.publish(queue.name, bytes(MIB), to_queue=True)
        await workers.close()
        device.socket._response.connection.transport.pause_reading()  # type: ignore[union-attr]
        await device.send(Packet(kind=Kind.SUBSCRIBE, number=2, argument=1000, text=queue.name))
        most = 0
        while not _has_gone(gateway, attacker.name):
            most = max(most, gateway.budgets.held.total)
            await asyncio.sleep(0)
        if most > 17 * MIB:
            raise Undefended(f"{most} bytes waited in the gateway")
    return f"gateway: disconnects it, {most >> 20} MiB had waited"


def _has_gone(gateway: Gateway, device: str) -> bool:
    return all(connection.device != device for connection in gateway.connections)


async def stay_a_stranger(attacker: Hostile) -> str:
    """Connections that say nothing, half a request, or no HELLO."""
    async with attacked(attacker.arena, authenticate_s=0.5) as (gateway, port):
        began = asyncio.get_running_loop().time()
        silent = [await asyncio.open_connection(HOST, port, local_addr=(ELSEWHERE, 0)) for _ in range(30)]
        for _, writer in silent[:15]:
            writer.write(b"GET /link HTTP/1.1\r\nHost:")
        async with raw_device(port, source=ELSEWHERE) as device:
            if await device.packet() is not None:
                raise Undefended("a stranger was told something")
        for reader, writer in silent:
            with suppress(ConnectionError):
                await reader.read()  # to its end
            writer.close()
        took = asyncio.get_running_loop().time() - began
        if gateway.admission.strangers > 1:
            raise Undefended("strangers are still there")
    return f"gateway: closed all after {took:.1f} s"


async def connect_thousands_of_times(attacker: Hostile) -> str:
    """More sockets than the gateway has descriptors for."""
    async with attacked(attacker.arena, per_address=64) as (gateway, port), AsyncExitStack() as opened:
        most = 0
        for _ in range(THOUSANDS):
            with suppress(ConnectionError):
                _, writer = await asyncio.open_connection(HOST, port, local_addr=(ELSEWHERE, 0))
                opened.callback(writer.close)
            most = max(most, gateway.admission.visits)
        if most > 80:
            raise Undefended(f"{most} connections at a time")
    return f"gateway: at most {most} of {THOUSANDS} stayed"


ATTACKS = (
    speak_as_another_by_the_gateway,
    come_from_a_foreign_page,
    guess_accounts_at_the_gateway,
    send_the_gateway_too_much_at_once,
    hide_bytes_in_packets,
    flood_the_gateway_with_frames,
    read_nothing_of_what_comes,
    stay_a_stranger,
    connect_thousands_of_times,
)
