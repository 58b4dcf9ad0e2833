"""A device that speaks a gateway's packets itself, well or badly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import WSMsgType

from broker.gateway import wire
from broker.gateway.wire import FROM_GATEWAY, Kind, Packet

ANSWER_S = 20.0


class RawDevice:
    """One WebSocket to a gateway."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, packet: Packet) -> None:
        await self.socket.send_bytes(wire.encode_packet(packet))

    async def packet(self) -> Packet | None:
        """The next packet; None where the gateway has closed the connection."""
        async with asyncio.timeout(ANSWER_S):
            message = await self.socket.receive()
        if message.type is not WSMsgType.BINARY:
            return None
        return wire.parse_packet(message.data, FROM_GATEWAY, frame_bytes=1 << 24)

    async def hello(self, account: str, password: str) -> Packet | None:
        """Authenticate; the gateway's answer."""
        await self.send(Packet(kind=Kind.HELLO, text=account, body=password.encode()))
        return await self.packet()

    async def refusal(self) -> str:
        """The message of the next packet, which must be a FAILED."""
        packet = await self.packet()
        assert packet is not None
        assert packet.kind is Kind.FAILED, packet
        return packet.text

    async def closed(self) -> int | None:
        """Wait until the gateway has closed the connection; with which code."""
        while await self.packet() is not None:
            pass
        return self.socket.close_code


@asynccontextmanager
async def raw_device(
    port: int, *, origin: str | None = None, source: str | None = None
) -> AsyncIterator[RawDevice]:
    """Connected, and a stranger yet. `source`: the address to come from."""
    connector = aiohttp.TCPConnector(local_addr=(source, 0) if source else None)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(
            f"http://127.0.0.1:{port}{wire.PATH}",
            protocols=(wire.PROTOCOL,),
            origin=origin,
            max_msg_size=1 << 25,
            timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
        ) as socket,
    ):
        yield RawDevice(socket)
