"""Links for phones: what is in them, and when there is none."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from urllib.parse import urlsplit

import pytest

from spliteasy.errors import UserError
from spliteasy_cli.browser.page import page_link, page_of


def test_a_link_holds_account_job_and_key_behind_the_hash_only() -> None:
    key = "ab" * 32
    link = page_link(
        "https://gate.example.org:8443", device="phone-7", password="päss", job="digits", operator_key=key
    )
    parts = urlsplit(link)
    assert (parts.scheme, parts.netloc, parts.path, parts.query) == (
        "https",
        "gate.example.org:8443",
        "/",
        "",
    )
    said = json.loads(urlsafe_b64decode(parts.fragment + "=" * (-len(parts.fragment) % 4)))
    assert said == {"v": 1, "device": "phone-7", "password": "päss", "job": "digits", "key": key}


@pytest.mark.parametrize(
    ("gateway", "page"),
    [
        ("wss://gate.example.org:8443", "https://gate.example.org:8443"),
        ("ws://127.0.0.1:8443", "http://127.0.0.1:8443"),
        ("ws://localhost", "http://localhost"),
    ],
)
def test_the_page_is_where_the_gateway_is(gateway: str, page: str) -> None:
    assert page_of(gateway) == page


def test_a_gateway_without_tls_has_no_page_for_phones() -> None:
    with pytest.raises(UserError, match="https only"):
        page_of("ws://gate.example.org:8443")
