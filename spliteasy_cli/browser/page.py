"""The page that trains in a browser: its files, and the link that its owner is given."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from pathlib import Path

from spliteasy.errors import UserError
from spliteasy.runtime.urls import split_url

PAGE = Path(__file__).resolve().parents[2] / "device_agent" / "web" / "dist"
"""The files that a gateway serves."""


def page_link(
    page: str,
    *,
    device: str,
    password: str,
    job: str,
    operator_key: str | None,
    fleet_key: bytes | None = None,
    samples: str | None = None,
) -> str:
    """The link for a phone's owner. What is behind the `#` stays in the browser: no server gets it.

    `fleet_key`: the key that the devices of a fleet share. `samples` is a file of examples on the page's
    server.
    """
    said: dict[str, object] = {"v": 1, "device": device, "password": password, "job": job}
    said |= {} if operator_key is None else {"key": operator_key}
    said |= {} if fleet_key is None else {"fleet": fleet_key.hex()}
    said |= {} if samples is None else {"samples": samples}
    text = urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode()).decode().rstrip("=")
    return f"{page.rstrip('/')}/#{text}"


def page_of(gateway: str) -> str:
    """The address of a gateway's page. Raises UserError where phones would refuse to train on it."""
    parts = split_url(gateway)
    if parts.scheme != "wss" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UserError(
            f"browsers train on pages that come by https only, and {gateway} has no TLS",
            hint="start the gateway with --cert and --key, and give --gateway wss://host:port",
        )
    return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}"
