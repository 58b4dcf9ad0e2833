"""What goes wrong in a browser is told in sentences that a phone's owner understands."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from spliteasy_cli.browser.page import page_link
from tests.dashboard.browser import find_browser, open_page
from tests.web.page import DEVICE, digits, digits_served, says, show

BROWSER = find_browser() or ""
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium: apt-get install chromium-headless-shell")
INSECURE = "Object.defineProperty(window, 'isSecureContext', {value: false})"
NO_FILES = "delete StorageManager.prototype.getDirectory"


async def test_what_is_wrong_is_told_and_what_to_do(tmp_path: Path) -> None:
    job = digits(epochs=1)
    async with (
        asyncio.timeout(120),
        digits_served(job, tmp_path / "served") as served,
        open_page(BROWSER, tmp_path / "browser") as page,
    ):
        await show(page, f"{served.address}/#not-a-link")
        await says(page, "This link is not complete")
        old = page_link(served.address, device=DEVICE, password="old", job=job.name, operator_key=None)
        await show(page, old)
        await says(page, "The server does not know this phone any more")
        other = page_link(
            served.address,
            device=DEVICE,
            password=served.passwords[DEVICE],
            job=job.name,
            operator_key="ab" * 32,
        )
        await show(page, other)
        await says(page, "not signed by the operator that sent you the link")
        for script, sentence in ((INSECURE, "came over http"), (NO_FILES, "keep no files")):
            added = await page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
            await show(page, served.links[DEVICE])
            await says(page, sentence)
            await page.call("Page.removeScriptToEvaluateOnNewDocument", **added)


async def test_a_second_tab_waits_until_the_first_is_closed(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(120),
        digits_served(digits(epochs=1), tmp_path / "served") as served,
        open_page(BROWSER, tmp_path / "browser") as page,
    ):
        await show(page, served.links[DEVICE])
        await says(page, "Your samples")
        await page.run(f"window.other = window.open({json.dumps(served.address)}), true")
        await page.until("other.document.body?.innerText.includes('open in another tab')")
        await page.run(
            "navigator.locks.query().then(({pending}) => pending.length === 1 || Promise.reject())"
        )
