"""The page in a headless Chromium: what it shows in light, dark and on a phone, and what its buttons do."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from deploy.accounts import Role
from tests.dashboard.browser import Page, find_browser, open_page
from tests.dashboard.conftest import SESSION, TOKEN, OpenDashboard, begin, heartbeat

BROWSER = find_browser()
pytestmark = [
    pytest.mark.rabbitmq,
    pytest.mark.redis,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium-headless-shell"),
]
LIVE = "document.querySelector('#status').dataset.state === 'live' && document.querySelector('#sessions td')"

UNNAMED = (
    "[...document.querySelectorAll('button, input, select, svg')].filter((each) => each.checkVisibility()"
    " && !each.ariaLabel && !each.innerText && !each.labels?.length).length"
)


async def text_of(page: Page, selector: str) -> str:
    text: str = await page.run(f"document.querySelector({json.dumps(selector)}).innerText")
    return text


@pytest.mark.parametrize(
    ("width", "height", "scheme"), [(1280, 900, "light"), (1280, 900, "dark"), (360, 780, "light")], ids=str
)
async def test_it_reads_well(
    open_dashboard: OpenDashboard, tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    assert BROWSER is not None
    async with asyncio.timeout(90), open_dashboard() as dashboard, open_page(BROWSER, tmp_path) as page:
        await dashboard.store.add_losses(SESSION, {0: 2.5})
        for n in range(2, 9):
            await begin(dashboard.store, f"a-job-with-quite-a-long-name.and-a-device-with-a-longer-one-{n}")
        await dashboard.following.look()
        await page.show(dashboard.url, width=width, height=height, scheme=scheme)
        await page.until(LIVE)
        assert await page.run("document.documentElement.scrollWidth") <= width, "nothing is cut off"
        assert await page.run("document.querySelectorAll('#sessions tbody tr').length") == 8
        image = Image.open(io.BytesIO(await page.picture())).convert("L")
        assert image.size == (width, height)
        corner = image.getpixel((4, height - 4))
        assert isinstance(corner, int)
        assert (corner > 200) if scheme == "light" else (corner < 60)
        assert await page.run(UNNAMED) == 0, "each control and chart has a name"
        assert page.complaints == []


async def test_a_change_shows_without_loading_the_page_again(
    open_dashboard: OpenDashboard, tmp_path: Path
) -> None:
    assert BROWSER is not None
    async with asyncio.timeout(90), open_dashboard() as dashboard, open_page(BROWSER, tmp_path) as page:
        await page.show(dashboard.url, width=1280, height=900, scheme="light")
        await page.until(LIVE)
        assert {"training", "0 of 600", "2.5"} <= set((await text_of(page, "#sessions")).split("\t"))
        await dashboard.store.pause(SESSION, True)
        await dashboard.following.look()
        await page.until("document.querySelector('#sessions').innerText.includes('paused')")
        assert f"{SESSION} paused by the operator" in await text_of(page, "#events")
        assert page.complaints == []


async def test_what_others_say_is_shown_as_text(open_dashboard: OpenDashboard, tmp_path: Path) -> None:
    """A worker's name and host are free text in the store."""
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    assert BROWSER is not None
    async with asyncio.timeout(90), open_dashboard() as dashboard, open_page(BROWSER, tmp_path) as page:
        await heartbeat(dashboard.store, hostile, hostile)
        await dashboard.following.look()
        await page.show(dashboard.url, width=1280, height=900, scheme="light")
        await page.until(LIVE)
        assert hostile in await text_of(page, "#workers")
        assert hostile in await text_of(page, "#events")
        assert await page.run("document.querySelectorAll('main img, main script').length") == 0
        assert "owned" not in await page.run("document.title")
        assert page.complaints == []


async def test_an_operator_logs_in_pauses_resumes_and_revokes(
    open_dashboard: OpenDashboard, tmp_path: Path
) -> None:
    assert BROWSER is not None
    async with asyncio.timeout(90), open_dashboard() as dashboard, open_page(BROWSER, tmp_path) as page:
        dashboard.accounts.enroll("phone-1", Role.DEVICE, "x" * 20)
        dashboard.following.look_at_all()
        await dashboard.following.look()
        await page.show(dashboard.url, width=1280, height=900, scheme="light")
        await page.until(LIVE)
        assert await page.run("document.querySelectorAll('td button').length") == 0
        await page.run("document.querySelector('#log-in').click()")
        await page.run("document.querySelector('#token').value = 'not the token at all'")
        await page.run("document.querySelector('#login .go').click()")
        await page.until("document.querySelector('#login .wrong').innerText === 'that is not the token'")
        await page.run(f"document.querySelector('#token').value = '{TOKEN}'")
        await page.run("document.querySelector('#login .go').click()")
        await page.until("document.querySelectorAll('td button').length === 2")
        assert await page.run("document.cookie") == ""
        for done, next_one in ((True, "Resume"), (False, "Pause")):
            await page.run("document.querySelector('#sessions button').click()")
            assert SESSION in await text_of(page, "#confirm")
            await page.run("document.querySelector('#confirm .go').click()")
            await page.until("!document.querySelector('#confirm').open")
            meta = await dashboard.store.session(SESSION)
            assert meta is not None
            assert meta.paused is done
            await dashboard.following.look()
            await page.until(f"document.querySelector('#sessions button').innerText === '{next_one}'")
        await page.run("document.querySelector('#devices button').click()")
        await page.run("document.querySelector('#confirm .cancel').click()")
        assert len(dashboard.accounts.list()) == 1
        await page.run("document.querySelector('#devices button').click()")
        await page.run("document.querySelector('#confirm .go').click()")
        await page.until("!document.querySelector('#confirm').open")
        assert dashboard.accounts.list() == []
        await page.run("document.querySelector('#log-out').click()")
        await page.until("document.querySelectorAll('td button').length === 0")
        refused = [each for each in page.complaints if "403" not in each]
        assert refused == [], "but for the wrong token"
