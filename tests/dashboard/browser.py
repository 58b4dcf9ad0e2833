"""A headless Chromium and one page of it, driven by its DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def find_browser() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One page. `complaints`: what its console and its security policy said, and errors nobody caught."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str = "") -> None:
        """Drive a session, or the browser itself without one."""
        self._socket, self._session, self._ids = socket, session, count(1000)
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        whose = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, **whose, "method": method, "params": parameters})
        async for message in self._socket:
            said = json.loads(message.data)
            if said.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(json.dumps(said["params"])[:400])
            if said.get("id") == number:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result
        raise AssertionError("the browser went away")

    async def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, once a promise is kept."""
        told = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a JavaScript condition holds."""
        await self.run(
            "new Promise((kept) => { const look = () => "
            f"({condition}) ? kept(true) : setTimeout(look, 20); look(); }})"
        )

    async def show(self, url: str, *, width: int, height: int, scheme: str) -> None:
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        await self.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def picture(self) -> bytes:
        """Return what the page shows, as PNG."""
        return b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


@asynccontextmanager
async def open_page(browser: str, folder: Path) -> AsyncIterator[Page]:
    """A fresh browser with an empty page; it ends at the end."""
    as_root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    process = await asyncio.create_subprocess_exec(
        browser, *FLAGS, *as_root, f"--user-data-dir={folder}", "about:blank",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        address = await _address(process)
        async with aiohttp.ClientSession() as client, client.ws_connect(address, max_msg_size=0) as socket:
            root = Page(socket)
            target = (await root.call("Target.createTarget", url="about:blank"))["targetId"]
            session = await root.call("Target.attachToTarget", targetId=target, flatten=True)
            yield Page(socket, session["sessionId"])
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its helpers too
        await process.communicate()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async for line in process.stderr:
        _, found, address = line.decode(errors="replace").partition("DevTools listening on ")
        if found:
            return address.strip()
    raise AssertionError("the browser did not start")
