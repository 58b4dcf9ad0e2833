"""Put the figures of runs/bench into the documents: `python -m benchmarks.harness.document`.

A document has `<!-- bench:NAME -->` and `<!-- /bench:NAME -->` where the tables of runs/bench/NAME.json go;
what stood between them is replaced. Pictures go to docs/images. What was not measured stays as it is.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from benchmarks.harness.pictures import draw
from benchmarks.harness.report import OUT, Table

DOCS = Path("docs")
DOCUMENTS = ("performance.md", "codecs.md", "privacy.md", "fleet.md", "models.md", "scale.md")


def fill(text: str, name: str, tables: str) -> str:
    """The document's text with `tables` between the markers of `name`, where it has them."""
    marked = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)", re.DOTALL)
    return marked.sub(lambda found: f"{found[1]}\n{tables}\n{found[2]}", text)


def tables_of(kept: dict[str, Any]) -> str:
    """Markdown of the tables that a benchmark kept, and what they were measured on."""
    about = ", ".join(f"{name} {value}" for name, value in kept["about"].items())
    tables = [Table(**table).markdown() for table in kept["tables"]]
    return "\n".join([*tables, f"Measured with {about}."])


def main() -> None:
    found = {file.stem: json.loads(file.read_text()) for file in sorted(OUT.glob("*.json"))}
    for name in DOCUMENTS:
        file = DOCS / name
        text = before = file.read_text()
        for part, kept in found.items():
            text = fill(text, part, tables_of(kept))
        file.write_text(text)
        print(f"{file}: {'changed' if text != before else 'as it was'}")
    (DOCS / "images").mkdir(exist_ok=True)
    for picture in draw(OUT):
        shutil.copy(picture, DOCS / "images" / f"bench-{picture.name}")


if __name__ == "__main__":
    main()
