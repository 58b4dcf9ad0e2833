"""A page in a headless Chromium speaks to a gateway, with the very code that docs/gateway.md shows."""

from __future__ import annotations

import asyncio
import json
import re
import struct
from pathlib import Path

import pytest

from broker.gateway.server import Gateway, serve
from broker.gateway.upstream import in_process_upstream
from broker.transport.in_process import MemoryBroker
from broker.transport.topology import REPLY_TO, reply_slot, shard_queue, uplink_key
from tests.dashboard.browser import find_browser, open_page
from tests.fixtures_rabbitmq import PASSWORD, free_ports

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium: apt-get install chromium-headless-shell"
)

HOST, DEVICE = "127.0.0.1", "phone-7"
KEY, QUEUE = uplink_key(DEVICE, 3), reply_slot(DEVICE, 4).name
SHARD = shard_queue(3)

TALK = """
(async () => {
  const password = PASSWORD
  DOCUMENTED
  const waiting = [], come = []
  socket.onmessage = ({data}) => waiting.length ? waiting.shift()(data) : come.push(data)
  const next = async () => {
    const data = await (come.length ? come.shift() : new Promise((kept) => waiting.push(kept)))
    const view = new DataView(data), at = 16 + Math.ceil(view.getUint16(2, true) / 8) * 8
    return {kind: view.getUint8(0), number: view.getUint32(4, true), argument: view.getUint32(8, true),
            text: new TextDecoder().decode(new Uint8Array(data, 16, view.getUint16(2, true))), data, at}
  }
  const said = [(await next()).kind]
  socket.send(packet(2, 1, 0, QUEUE))
  said.push((await next()).kind)
  socket.send(packet(3, 2, 16, QUEUE))
  said.push((await next()).kind)
  socket.send(packet(4, 3, 0, KEY + '\\n' + QUEUE, new Uint8Array(new Float32Array([1.5, -2]).buffer)))
  const [done, delivery] = [await next(), await next()].sort((one, other) => one.kind - other.kind)
  said.push(done.kind)
  socket.send(packet(5, delivery.number, delivery.argument, ''))
  socket.send(packet(6, 4, 2, ''))
  said.push((await next()).kind)
  return [said, delivery.kind, delivery.text, [...new Float32Array(delivery.data, delivery.at)]]
})()
"""


def documented(port: int) -> str:
    """The code that the document shows, for a gateway on that port without TLS."""
    text = (Path(__file__).parents[2] / "docs/gateway.md").read_text()
    (code,) = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    return str(code).replace("wss://gate.example.org:8443", f"ws://{HOST}:{port}")


async def test_a_page_sends_a_frame_and_reads_a_reply(tmp_path: Path) -> None:
    assert BROWSER is not None
    broker = MemoryBroker()
    worker = broker.connect("workers")
    await worker.declare(SHARD)
    requests = await worker.subscribe(SHARD.name, prefetch=1)
    (port,) = free_ports(1)
    origin = f"http://{HOST}:{port}"
    gateway = Gateway(in_process_upstream(broker, {DEVICE: PASSWORD}), origins=[origin])

    async def reply() -> tuple[bytes, str | None]:
        request = await anext(aiter(requests))
        await worker.publish(request.headers[REPLY_TO], struct.pack("<2f", 0.25, 8.0), to_queue=True)
        return bytes(request.body), request.principal

    async with (
        asyncio.timeout(90),
        serve(gateway, host=HOST, port=port),
        open_page(BROWSER, tmp_path) as page,
    ):
        replying = asyncio.create_task(reply())
        await page.show(origin, width=360, height=780, scheme="light")  # so that it is the page's origin
        program = TALK.replace("DOCUMENTED", documented(port)).replace("PASSWORD", json.dumps(PASSWORD))
        told = await page.run(program.replace("QUEUE", json.dumps(QUEUE)).replace("KEY", json.dumps(KEY)))
        assert told == [[16, 17, 17, 17, 17], 19, f"{QUEUE}\nworkers", [0.25, 8.0]]
        assert await replying == (struct.pack("<2f", 1.5, -2.0), DEVICE)
        depth = await worker.depth(QUEUE)
        assert depth is not None
        assert depth.messages == 0, "it acknowledged the reply"
