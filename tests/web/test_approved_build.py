"""The page is the build that its owner approved, and what it keeps of the link can't be read out."""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

import pytest

from broker.gateway.pages import Pages
from spliteasy_cli.browser.embedded import SAMPLES, Served
from spliteasy_cli.browser.page import PAGE
from tests.dashboard.browser import Page, find_browser, open_page
from tests.web.page import DEVICE, digits, digits_served, press, says, show

BROWSER = find_browser() or ""
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium: apt-get install chromium-headless-shell")
CONTROLLED = "navigator.serviceWorker.controller !== null"
SEEN = b"\nbody { --seen: 1 }\n"
"""What the tests add to a file, so that another build can be told from this one."""
KEPT = """new Promise((kept) => {
  const opening = indexedDB.open('spliteasy', 1)
  opening.onsuccess = () => {
    const asked = opening.result.transaction('credentials').objectStore('credentials').get('enrolment')
    asked.onsuccess = () => kept(asked.result)
  }
})"""
UPDATED = """navigator.serviceWorker.ready.then((registration) => new Promise((told) => {
  registration.addEventListener('updatefound', () => {
    const coming = registration.installing
    coming.addEventListener('statechange', () => told(coming.state))
  })
  registration.update().catch(() => undefined)
}))"""


def shipped() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in PAGE.iterdir()}


def digest(data: bytes) -> bytes:
    return b"sha384-" + b64encode(hashlib.sha384(data).digest())


def rebuilt(name: str, body: bytes) -> dict[str, bytes]:
    """The build with another file in it, and the digests that go with that."""
    before, files = shipped(), shipped()
    files[name] = body
    index = files["index.html"].replace(digest(before[name]), digest(body))
    files["index.html"] = index
    for old, new in ((before[name], body), (before["index.html"], index)):
        files["service.js"] = files["service.js"].replace(digest(old), digest(new))
    return files


def serve(served: Served, files: Mapping[str, bytes]) -> None:
    """Let the gateway hand out other files from now on."""
    offered = served.gateway._pages
    assert offered is not None
    samples = offered._files[SAMPLES].body
    served.gateway._pages = Pages({f"/{name}": body for name, body in files.items()} | {SAMPLES: samples})


async def reload(page: Page, served: Served) -> None:
    await show(page, served.address)
    await says(page, "Your samples")


async def seen(page: Page) -> bool:
    found: str = await page.run("getComputedStyle(document.body).getPropertyValue('--seen')")
    return found.strip() == "1"


async def after_reload(page: Page, condition: str) -> None:
    """Wait until a condition holds in a page that loads itself again meanwhile, which ends the waiting."""
    while True:
        try:
            return await page.until(condition)
        except AssertionError as error:
            if "navigated" not in str(error):
                raise


async def test_the_page_stays_the_build_that_was_approved_until_its_owner_takes_another(
    tmp_path: Path,
) -> None:
    async with (
        asyncio.timeout(150),
        digits_served(digits(epochs=1), tmp_path / "served") as served,
        open_page(BROWSER, tmp_path / "browser") as page,
    ):
        await show(page, served.links[DEVICE])
        await says(page, "Your samples")
        await press(page, "Use the example samples")
        await says(page, "150 samples")
        await page.until(CONTROLLED)

        plain = shipped()
        style = plain["style.css"] + SEEN
        serve(served, plain | {"style.css": style, "page.js": b"document.title = 'another page'"})
        await reload(page, served)
        assert await page.run("document.title") == "Train with this phone"
        assert not await seen(page), "the files that the server hands out now are not used"

        serve(served, rebuilt("style.css", style) | {"style.css": style + b" "})
        assert await page.run(UPDATED) == "redundant", (
            "a build whose files have other digests is not installed"
        )

        serve(served, rebuilt("style.css", style))
        await reload(page, served)
        await says(page, "There is a new version of this page.")
        assert not await seen(page)
        await press(page, "Take the new version")
        await after_reload(
            page, "document.body && getComputedStyle(document.body).getPropertyValue('--seen').trim() === '1'"
        )
        await says(page, "150 samples")


async def test_a_script_that_was_changed_on_its_way_is_not_run(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(60),
        digits_served(digits(epochs=1), tmp_path / "served") as served,
        open_page(BROWSER, tmp_path / "browser") as page,
    ):
        serve(served, shipped() | {"page.js": b"document.title = 'another page'"})
        await show(page, served.links[DEVICE])
        assert await page.run("document.title") == "Train with this phone"
        assert "Your samples" not in await page.run("document.body.innerText")


async def test_the_password_is_kept_under_a_key_that_no_script_reads(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(60),
        digits_served(digits(epochs=1), tmp_path / "served") as served,
        open_page(BROWSER, tmp_path / "browser") as page,
    ):
        await show(page, served.links[DEVICE])
        await says(page, "Your samples")
        assert await page.run("localStorage.length") == 0
        exported = f"{KEPT}.then(({{key}}) => crypto.subtle.exportKey('raw', key)).then(() => 'read', String)"
        assert "not extractable" in await page.run(exported)
        data = bytes(await page.run(f"{KEPT}.then(({{data}}) => [...new Uint8Array(data)])"))
        assert served.passwords[DEVICE].encode() not in data
        fragment = served.links[DEVICE].partition("#")[2]
        assert fragment.encode() not in data
        await reload(page, served)  # without the fragment: it is decrypted here
        await page.run("localStorage.setItem('spliteasy enrolment', " + json.dumps(f"#{fragment}") + ")")
        await page.run("indexedDB.deleteDatabase('spliteasy'); true")
        await reload(page, served)
        assert await page.run("localStorage.length") == 0, "what an earlier build kept in the open is moved"
