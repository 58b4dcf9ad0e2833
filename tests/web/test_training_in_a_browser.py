"""A page in a headless Chromium trains the digits job over a gateway, and comes back after a kill."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from spliteasy.job.spec import EvaluationSpec, PrivacySpec
from spliteasy.job.spec.optimizer import AdamSpec
from tests.dashboard.browser import Page, find_browser, open_page
from tests.web.page import DEVICE, digits, digits_served, history, press, read_file, says, show, write_file

BROWSER = find_browser() or ""
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium: apt-get install chromium-headless-shell")
FINISHED = "Finished: all 20 steps are done."
STOPPED_EARLY = "Finished after 15 steps: the model no longer gets better."
SETTINGS: dict[str, Any] = {
    "accumulate": 2,
    "optimizer": AdamSpec(name="adam", lr=0.01, ema=0.5),
    "evaluation": EvaluationSpec(metrics=("f1", "auc", "top_5"), patience=2, min_delta=5.0),
}
"""Settings that a device alone keeps: gradients added up, averaged weights, what ends a training early."""
DEFENCES: dict[str, Any] = {
    "privacy": PrivacySpec(
        clip_activations=20.0, noise_activations=0.001, gradient_noise="max_norm", nopeek=0.01, label_dp=8.0
    )
}


async def begin(page: Page, link: str) -> None:
    """Open the link, take the example samples, and train."""
    await show(page, link)
    await press(page, "Use the example samples")
    await press(page, "Train")


async def draw_a_line(page: Page) -> None:
    """Draw a stroke from top to bottom on the canvas of the last part, and ask what it is."""
    await page.run(
        """(() => {
          const pad = document.querySelector('#try canvas')
          const {left, top, width, height} = pad.getBoundingClientRect()
          pad.setPointerCapture = () => undefined
          const at = (kind, x, y) => pad.dispatchEvent(new PointerEvent(kind, {
            pointerId: 1, clientX: left + x * width, clientY: top + y * height, bubbles: true}))
          at('pointerdown', 0.5, 0.2)
          at('pointermove', 0.5, 0.8)
          at('pointerup', 0.5, 0.8)
        })()"""
    )
    await press(page, "What is it?")


@pytest.mark.parametrize(
    ("changes", "steps", "end"),
    [({}, 20, FINISHED), (SETTINGS, 15, STOPPED_EARLY)],
    ids=["plain", "settings"],
)
async def test_a_killed_browser_goes_on_to_the_same_losses(
    tmp_path: Path, changes: dict[str, Any], steps: int, end: str
) -> None:
    """SIGKILL in mid-training: every loss and evaluation is that of an undisturbed run, bit for bit, and the
    model works."""
    job = digits(**changes)
    async with (
        asyncio.timeout(150),
        digits_served(job, tmp_path / "calm") as served,
        open_page(BROWSER, tmp_path / "calm-browser") as page,
    ):
        await begin(page, served.links[DEVICE])
        assert await page.run("location.hash") == "", "the password is not in the address bar"
        await says(page, end)
        expected = await history(page, job.name)
        secret = await read_file(page, job.name, "secret")
        await draw_a_line(page)
        await page.until("/It says: \\d, \\d+ % sure/.test(document.body.innerText)")
        assert page.complaints == []
    assert len(expected["losses"]) == steps
    assert min(expected["losses"][-5:]) < expected["losses"][0]
    measured = [set(each["metrics"]) for each in expected["evaluations"]]
    assert measured == [set(job.spec.evaluation.metrics)] * (steps // 5)
    async with asyncio.timeout(150), digits_served(job, tmp_path / "killed") as served:
        async with open_page(BROWSER, tmp_path / "browser") as page:
            await show(page, served.address)
            await says(page, "Open this page with the link")
            await write_file(page, job.name, "secret", secret)  # so that both draw alike
            await begin(page, served.links[DEVICE])
            await page.until("/Step (7|8|9) of 20/.test(document.body.innerText)")
        async with open_page(BROWSER, tmp_path / "browser") as page:  # the first was killed
            await show(page, served.links[DEVICE])
            await says(page, end)
            assert await history(page, job.name) == expected
            assert page.complaints == []
