"""The files of vectors: which there are, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from broker.protocol.schemas import schemas
from tests.vectors import coded, draws, transcripts, wire

FOLDER = Path(__file__).parent
VECTORS: Mapping[str, Callable[[], Any]] = {
    "envelopes.json": wire.envelopes,
    "frames.json": wire.frames,
    "keys.json": draws.keys,
    "numbers.json": draws.numbers,
    "device.json": draws.device,
    "digests.json": draws.digests,
    "codecs.json": coded.codecs,
}


def written() -> dict[str, str]:
    """The text of each file, as the code of today makes it."""
    vectors = {
        name: json.dumps(make(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        for name, make in VECTORS.items()
    }
    machine = {"machine.json": transcripts.as_text(transcripts.transcripts())}
    return vectors | machine | {f"schemas/{name}": text.decode() for name, text in schemas().items()}
