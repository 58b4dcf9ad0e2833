"""Three browsers train one model over a gateway; one of them is killed, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from spliteasy.job import Job
from spliteasy.job.spec import FleetSpec
from spliteasy_cli.browser.embedded import Served
from tests.dashboard.browser import Page, find_browser, open_page
from tests.web.page import digits, digits_served, history, press, read_file, says, show, write_file

BROWSER = find_browser() or ""
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium: apt-get install chromium-headless-shell")
DEVICES = ("browser-1", "browser-2", "browser-3")
KILLED = DEVICES[1]
FLEET_KEY = bytes(range(32))
FINISHED = "Finished: all"
Secrets = Mapping[str, bytes]


async def trained(
    job: Job, folder: Path, secrets: Secrets | None, *, kill: bool
) -> tuple[dict[str, Any], Secrets]:
    """What each browser has kept of its training, and its secret; with `secrets` it draws as another did."""
    kept: dict[str, Any] = {}
    found: dict[str, bytes] = {}

    async def one(device: str, page: Page) -> None:
        await says(page, FINISHED)
        kept[device] = await history(page, job.name, device)
        found[device] = await read_file(page, job.name, "secret", device)
        assert page.complaints == []

    async with (
        asyncio.timeout(200),
        digits_served(job, folder, devices=DEVICES, fleet_key=FLEET_KEY) as served,
        AsyncExitStack() as stack,
    ):
        doomed = AsyncExitStack()
        pages = {}
        for device in DEVICES:
            holder = doomed if kill and device == KILLED else stack
            page = pages[device] = await holder.enter_async_context(open_page(BROWSER, folder / device))
            if secrets is not None:
                await show(page, served.address)
                await says(page, "Open this page with the link")
                await write_file(page, job.name, "secret", secrets[device], device)
            await begin(page, served, device)
        if kill:
            await pages[KILLED].until("document.querySelector('#train progress').value > 0.25")
            await doomed.aclose()
            pages[KILLED] = await stack.enter_async_context(open_page(BROWSER, folder / KILLED))
            await show(pages[KILLED], served.links[KILLED])
        async with asyncio.TaskGroup() as group:
            for device, page in pages.items():
                group.create_task(one(device, page))
    return kept, found


async def begin(page: Page, served: Served, device: str) -> None:
    await show(page, served.links[device])
    await press(page, "Use the example samples")
    await press(page, "Train")


@pytest.mark.parametrize(
    "fleet",
    [
        {"mode": "splitfed", "round_steps": 3, "quorum": 3, "norm": "local"},
        {"mode": "shared", "round_steps": 3, "quorum": 3},
    ],
    ids=["splitfed", "shared"],
)
async def test_a_fleet_of_browsers_trains_one_model_whatever_happens_to_one(
    tmp_path: Path, fleet: dict[str, Any]
) -> None:
    """Ends are sealed; a member is killed in a round: every loss is that of an undisturbed run."""
    job = digits(epochs=2, fleet=FleetSpec.model_validate(fleet))
    calm, secrets = await trained(job, tmp_path / "calm", None, kill=False)
    losses = [[loss for loss in kept["losses"] if loss is not None] for kept in calm.values()]
    assert all(len(each) == len(losses[0]) >= 8 for each in losses)
    assert sum(each[-1] for each in losses) < sum(each[0] for each in losses)
    disturbed, _ = await trained(job, tmp_path / "killed", secrets, kill=True)
    for device in DEVICES:
        assert disturbed[device]["losses"] == calm[device]["losses"], device
        if device != KILLED:  # that one may be killed in an evaluation, which is not made again
            assert disturbed[device]["evaluations"] == calm[device]["evaluations"], device


async def test_browsers_hand_over_by_turns_whatever_happens_to_one(tmp_path: Path) -> None:
    """What is handed over is sealed. The order of turns follows from who was there first: runs differ."""
    fleet = FleetSpec.model_validate({"mode": "relay", "round_steps": 4})
    job = digits(epochs=2, fleet=fleet)
    kept, _ = await trained(job, tmp_path / "killed", None, kill=True)
    losses = [[loss for loss in each["losses"] if loss is not None] for each in kept.values()]
    assert [len(each) for each in losses] == [8, 8, 8]
    assert min(map(min, losses)) < max(map(max, losses)) / 2
