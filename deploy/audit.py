"""Looks at the dependencies that are installed: `make audit`.

Offline: every requirement of ours, and of theirs, is met by what is installed; every package names a licence,
and none that would bind ours. Known vulnerabilities are asked for by `pip-audit` where that is installed and
reaches its advisories; where not, the last line says `vulnerabilities=not-asked`, which is no all-clear.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

EXTRAS = ("agent", "worker", "images", "metrics")
"""The extras that devices and servers install, and `make setup` too."""

FASTER = "fast"
"""The extra that everything works without: its packages count where they are installed."""

BINDING = re.compile(r"(?<!L)(?<!Lesser )(A?GPL|General Public License)", re.IGNORECASE)
AUDIT_S = 300


def closure() -> Iterator[tuple[metadata.Distribution, str | None]]:
    """Each distribution that we need, and those that they need, with what is wrong with it (or None)."""
    seen: set[tuple[str, str]] = set()
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *(line for e in EXTRAS for line in project["optional-dependencies"][e]),
    ]
    faster = [Requirement(line) for line in project["optional-dependencies"][FASTER]]
    waiting = [Requirement(line) for line in lines] + [each for each in faster if _installed(each.name)]
    while waiting:
        wanted = waiting.pop()
        key = (wanted.name.lower(), ",".join(sorted(wanted.extras)))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            raise SystemExit(f"error: {wanted.name} is not installed (make setup)") from None
        fits = wanted.specifier.contains(found.version, prereleases=True)
        yield found, None if fits else f"{found.version} is not {wanted.specifier}"
        for line in found.requires or ():
            needed = Requirement(line)
            chosen = [{"extra": extra} for extra in (*wanted.extras, "")]
            if needed.marker is None or any(needed.marker.evaluate(each) for each in chosen):
                waiting.append(needed)


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def licence(found: metadata.Distribution) -> str:
    """Return on one line what the package says of its licence, or nothing where it says nothing."""
    about: Any = found.metadata
    said = about.get("License-Expression") or next(
        (
            each.rpartition(" :: ")[2]
            for each in about.get_all("Classifier") or ()
            if each.startswith("License")
        ),
        about.get("License", "").strip().partition("\n")[0],
    )
    return " ".join(str(said).split())[:60]


def vulnerabilities() -> str:
    """`none`, `found` (and printed), or `not-asked`."""
    if util.find_spec("pip_audit") is None:
        return "not-asked"
    ran = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--skip-editable"],
        capture_output=True, text=True, timeout=AUDIT_S, check=False,
    )  # fmt: skip
    if ran.returncode == 0:
        return "none"
    print(ran.stdout + ran.stderr[-500:])
    return "found" if "Fix Versions" in ran.stdout else "not-asked"


def main() -> int:
    """Print the list; exit code 1 where something is wrong."""
    wrong = 0
    for found, complaint in sorted(closure(), key=lambda each: each[0].name.lower()):
        terms = licence(found)
        if not terms or BINDING.search(terms):
            complaint = complaint or "no licence is named" if not terms else "its licence would bind ours"
        print(f"{found.name:24} {found.version:16} {terms or '?':40} {complaint or ''}".rstrip())
        wrong += complaint is not None
    known = vulnerabilities()
    if known == "not-asked":
        print("pip-audit is not installed, or did not reach its advisories: known vulnerabilities not asked")
    print(f"wrong={wrong} vulnerabilities={known}")
    return int(wrong > 0 or known == "found")


if __name__ == "__main__":
    sys.exit(main())
