"""The files of vectors for the browser's engine: which there are, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.web.cases import cases

FOLDER = Path(__file__).parent
VECTORS: Mapping[str, Callable[[], Any]] = {"operators.json": lambda: [case.vector() for case in cases()]}


def written() -> dict[str, str]:
    """The text of each file, as PyTorch makes it here."""
    return {name: json.dumps(make(), allow_nan=False) + "\n" for name, make in VECTORS.items()}
