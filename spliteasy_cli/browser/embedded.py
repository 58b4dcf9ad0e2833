"""A page with gateway, broker, store and worker behind it, all in this process."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.gateway.pages import Pages
from broker.gateway.server import Gateway, serve
from broker.gateway.upstream import in_process_upstream
from broker.transport.in_process import MemoryBroker
from server_worker.config import Trust
from server_worker.store import open_store
from spliteasy.job import Job
from spliteasy.job.signing import new_key, read_public_key, read_signer
from spliteasy_cli.browser.page import PAGE, page_link
from spliteasy_cli.commands.submit import store_job
from spliteasy_cli.support.embedded import async_connect, workers_running

SAMPLES = "/samples.json"


@dataclass(frozen=True, slots=True)
class Served:
    """The gateway, and the link of each device by its name."""

    gateway: Gateway
    address: str
    links: dict[str, str]
    passwords: dict[str, str] = field(repr=False)


@asynccontextmanager
async def page_served(
    job: Job,
    store_file: Path,
    *,
    devices: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 0,
    samples: bytes | None = None,
    fleet_key: bytes | None = None,
) -> AsyncIterator[Served]:
    """Serve the page for these devices while it is entered; the job is signed by a key made for this.

    `samples`: a JSON file of examples that the page offers. `fleet_key`: for devices that share one.
    """
    known = {device: secrets.token_urlsafe(24) for device in devices}
    broker = MemoryBroker()
    store = await open_store(f"sqlite:///{store_file}")
    pages = Pages.of(PAGE, {} if samples is None else {SAMPLES: samples})
    gateway = Gateway(in_process_upstream(broker, known), pages=pages)
    signature, operator_key = _signed(job.digest)
    try:
        await store_job(store, job, signature)
        async with (
            workers_running(1, store, async_connect(broker), trust=Trust.ENROLLED),
            serve(gateway, host=host, port=port) as bound,
        ):
            address = f"http://{host}:{bound}"
            offered = None if samples is None else SAMPLES.removeprefix("/")
            links = {
                device: page_link(
                    address,
                    device=device,
                    password=known[device],
                    job=job.name,
                    operator_key=operator_key,
                    fleet_key=fleet_key,
                    samples=offered,
                )
                for device in devices
            }
            yield Served(gateway, address, links, known)
    finally:
        await store.close()


def _signed(digest: str) -> tuple[str, str]:
    """A signature of the digest, and the public key that it is by."""
    private, public = new_key()
    with TemporaryDirectory() as folder:
        key = Path(folder) / "operator.key"
        key.touch(mode=0o600)
        key.write_bytes(private)
        (Path(folder) / "operator.pub").write_bytes(public)
        return read_signer(key)(digest), read_public_key(Path(folder) / "operator.pub")
