"""axe finds nothing to object to in any state of the page, at 360 px, light and dark."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.dashboard.browser import Page, find_browser, open_page
from tests.web.node import WEB, packages
from tests.web.page import DEVICE, digits, digits_served, press, says, show

BROWSER = find_browser() or ""
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium: apt-get install chromium-headless-shell")
AXE = WEB / "node_modules" / "axe-core" / "axe.min.js"
RUN = """axe.run(document, {resultTypes: ['violations']}).then(({violations}) => JSON.stringify(
  violations.map(({id, nodes}) => [id, nodes.map(({html}) => html.slice(0, 200))])))"""
WIDTH = 360


async def violations(page: Page) -> list[str]:
    """What axe objects to in the page as it is now, and what sticks out of it to the right."""
    await page.run(AXE.read_text() + "; true")
    found: list[str] = json.loads(await page.run(RUN))
    width = await page.run("document.documentElement.scrollWidth")
    return found + ([f"{width} px wide"] if width > WIDTH else [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_state_of_the_page_keeps_anybody_out(tmp_path: Path, scheme: str) -> None:
    packages()
    job = digits(epochs=1)
    async with (
        asyncio.timeout(150),
        digits_served(job, tmp_path / "served") as served,
        open_page(BROWSER, tmp_path / "browser") as page,
    ):
        await show(page, served.address, width=WIDTH, scheme=scheme)
        await says(page, "Open this page with the link")
        assert await violations(page) == []
        await show(page, served.links[DEVICE], width=WIDTH, scheme=scheme)
        await says(page, "Your samples")
        assert await violations(page) == []
        await press(page, "Use the example samples")
        await press(page, "Train")
        await says(page, "Finished: all 5 steps are done.")
        assert await violations(page) == []
