"""The text of each phone: some pages of Python's own reference, which ships with it in `pydoc_data`.

This stands for private messages: it is read on the device, and only there.
"""

from __future__ import annotations

import hashlib
from pydoc_data.topics import topics
from typing import TypeAlias

import torch
from torch import Tensor

from examples.text.model import IGNORED, LENGTH

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
    """Pieces of the pages, the last of a page padded: the mask and the labels say what is there."""
    found = []
    for name in names:
        page = topics[name].encode("ascii", "replace")
        for start in range(0, len(page) - SHORTEST, LENGTH):
            found.append(_piece(page[start : start + LENGTH + 1]))
    return found


def _piece(text: bytes) -> Text:
    count = len(text) - 1
    characters, following = torch.zeros(LENGTH, dtype=torch.int64), torch.full((LENGTH,), IGNORED)
    characters[:count] = torch.tensor(list(text[:-1]))
    following[:count] = torch.tensor(list(text[1:]))
    mask = (torch.arange(LENGTH) < count).long()
    return {"input_ids": characters, "attention_mask": mask, "following": following}
