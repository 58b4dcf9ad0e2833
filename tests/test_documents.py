"""The pages under docs/ lead to each other, cite files that exist, and name every key of the job file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from spliteasy.job.spec import JobSpec
from spliteasy_cli.state_diagram import DIAGRAMS, with_diagrams

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PARTS = (
    "spliteasy",
    "spliteasy_cli",
    "broker",
    "device_agent",
    "server_worker",
    "deploy",
    "docs",
    "testing",
    "tests",
)
TREE = [
    *(path.name for path in ROOT.iterdir() if path.is_file()),
    *(
        str(path.relative_to(ROOT))
        for part in (*PARTS, "benchmarks", "examples")
        for path in (ROOT / part).rglob("*")
        if path.is_file()
    ),
]


def anchors(page: Path) -> set[str]:
    """The anchors that the page's headings have on GitHub."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^):\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), target


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name}" in index, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    for cited in re.findall(r"`((?:[a-z_]+/)+[\w.-]+\.(?:py|md|toml|yaml|conf|json))`", page.read_text()):
        assert cited.startswith("runs/") or any(file.endswith(cited) for file in TREE), cited


def test_code_cites_no_document_that_is_not_here() -> None:
    for name in (file for file in TREE if file.endswith(".py")):
        text = (ROOT / name).read_text()
        for cited in re.findall(r"\b([\w/]*[A-Z]{4,}\.md|docs/[\w-]+\.md)\b", text):
            assert any(file.endswith(cited) for file in TREE), (name, cited)
        assert name == "tests/test_documents.py" or not re.search(r"\(DESIGN[:)]|DESIGN §", text), name


def test_the_states_are_drawn_from_their_table() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    assert all(diagram() in page for diagram in DIAGRAMS.values())
    assert with_diagrams(page) == page, "run `make docs`"


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    found = [model]
    for field in model.model_fields.values():
        queue = [field.annotation]
        while queue:
            each = queue.pop()
            queue += get_args(each)
            if isinstance(each, type) and issubclass(each, BaseModel):
                found += sections(each)
    return found


def test_every_key_of_the_job_file_is_explained() -> None:
    page = (ROOT / "docs/job-file.md").read_text()
    for section in sections(JobSpec):
        for key in section.model_fields:
            assert re.search(rf"`\[*(?:\w+\.)?{key}\]*`|`{key} =", page), (section.__name__, key)
