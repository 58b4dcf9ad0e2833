"""The text of each phone: some pages of Python's own reference, which ships with it in `pydoc_data`.

This stands for private messages: it is read on the device, and only there.
"""

from __future__ import annotations

import hashlib
import re
from pydoc_data.topics import topics
from typing import TypeAlias

import torch
from torch import Tensor

from examples.text.model import LENGTH

PHONES, TEST_PAGES = 4, 4
TRAINED, TESTED = 320, 64
"""Pieces of text that a phone has at most."""
SHORTEST = 16

Text: TypeAlias = dict[str, Tensor]


def device_data(device: str) -> tuple[list[Text], list[Text]]:
    """Return (train, test) of one phone: pieces of its own pages, and of pages that no phone has."""
    names = sorted(topics)
    mine = names[TEST_PAGES:][hashlib.sha256(device.encode()).digest()[0] % PHONES :: PHONES]
    return pieces(mine)[:TRAINED], pieces(names[:TEST_PAGES])[:TESTED]


def pieces(names: list[str]) -> list[Text]:
    """The clauses of the pages: each is as long as it is, and the job pads them. Longer ones are cut."""
    found = []
    for name in names:
        for clause in re.split(r"(?<=[.,;:])\s+", topics[name]):
            text = " ".join(clause.split()).encode("ascii", "replace")
            if len(text) > SHORTEST:
                found.append(_piece(text[: LENGTH + 1]))
    return found


def _piece(text: bytes) -> Text:
    characters = torch.tensor(list(text))
    return {
        "input_ids": characters[:-1],
        "attention_mask": torch.ones(len(text) - 1, dtype=torch.int64),
        "following": characters[1:],
    }
