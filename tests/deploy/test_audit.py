"""The dependencies that are installed: complete, and under licences that leave ours alone."""

from __future__ import annotations

import pytest

from deploy import audit


def test_what_is_installed_fits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(audit, "vulnerabilities", lambda: "not-asked")  # it needs a network
    code = audit.main()
    said = capsys.readouterr().out
    assert code == 0, said
    assert {"torch", "redis", "aiormq"} <= {line.split()[0] for line in said.splitlines()}
    assert said.splitlines()[-1] == "wrong=0 vulnerabilities=not-asked"


@pytest.mark.parametrize(
    ("terms", "binds"),
    [
        ("GPL-3.0-only", True),
        ("GNU Affero General Public License v3", True),
        ("LGPL-2.1", False),
        ("MIT", False),
    ],
)
def test_licences_that_bind(terms: str, binds: bool) -> None:
    assert bool(audit.BINDING.search(terms)) == binds
