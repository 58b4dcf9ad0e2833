"""A page that trains, in a headless Chromium, and what it keeps in the browser's own files."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from examples.digits.samples import samples
from spliteasy.job import Job
from spliteasy.job.file import load_job_file
from spliteasy_cli.browser.embedded import Served, page_served
from tests.dashboard.browser import Page

ROOT = Path(__file__).parents[2]
DEVICE = "browser-1"
HEADER_BYTES = 40
"""Each file begins with so many bytes that tell whether it is whole."""
EPOCHS = 4
IN_WEBAGENT_FILES = """(async () => {
  const root = await navigator.storage.getDirectory()
  const folder = await root.getDirectoryHandle(NAME, {create: true})
  BODY
})()"""


def digits(epochs: int = EPOCHS, **changes: Any) -> Job:
    """The digits job for browsers, shorter."""
    spec = load_job_file(ROOT / "examples/digits/browser.toml").model_copy(
        update={"epochs": epochs, **changes}
    )
    return Job.create(spec, ROOT)


@asynccontextmanager
async def digits_served(
    job: Job, folder: Path, *, devices: Sequence[str] = (DEVICE,), **more: Any
) -> AsyncIterator[Served]:
    """The page with a worker behind it, and the digits of a phone as examples."""
    offered = samples(count=150).encode()
    async with page_served(
        job, folder.with_suffix(".sqlite"), devices=devices, samples=offered, **more
    ) as served:
        yield served


async def in_files(page: Page, job: str, body: str, device: str = DEVICE) -> Any:
    """Run JavaScript on the folder of a training, `folder`; the origin's page has to be shown."""
    program = IN_WEBAGENT_FILES.replace("NAME", json.dumps(f"{job}.{device}")).replace("BODY", body)
    return await page.run(program)


async def read_file(page: Page, job: str, name: str, device: str = DEVICE) -> bytes:
    """A file of the training as it lies there, checksum and all."""
    body = f"""const file = await (await folder.getFileHandle({json.dumps(name)})).getFile()
    return [...new Uint8Array(await file.arrayBuffer())]"""
    return bytes(await in_files(page, job, body, device))


async def write_file(page: Page, job: str, name: str, data: bytes, device: str = DEVICE) -> None:
    body = f"""const file = await folder.getFileHandle({json.dumps(name)}, {{create: true}})
    const out = await file.createWritable()
    await out.write(new Uint8Array({list(data)}))
    await out.close()"""
    await in_files(page, job, body, device)


async def history(page: Page, job: str, device: str = DEVICE) -> dict[str, Any]:
    """The losses and evaluations of all steps so far, as the page keeps them."""
    kept: dict[str, Any] = json.loads((await read_file(page, job, "history", device))[HEADER_BYTES:])
    return kept


async def show(page: Page, link: str, *, width: int = 360, scheme: str = "light") -> None:
    """Load the page from nothing, so that another fragment is another visit."""
    for url in ("about:blank", link):
        await page.show(url, width=width, height=780, scheme=scheme)


async def press(page: Page, label: str) -> None:
    """Press the button of that label, once it is there and may be pressed."""
    is_it = f"(b) => b.textContent === {json.dumps(label)} && b.checkVisibility()"
    found = f"[...document.querySelectorAll('button')].find({is_it})"
    await page.until(f"{found}?.disabled === false")
    await page.run(f"{found}.click()")


async def says(page: Page, text: str) -> None:
    """Wait until the page says so."""
    await page.until(f"document.body.innerText.includes({json.dumps(text)})")
