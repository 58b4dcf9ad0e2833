"""Tokens of text from the activations of an embedding and causal blocks: one position after the other.

A causal head's activation at a position depends on the tokens up to it. The adversary knows the head; it
tries every token of the vocabulary at the first position, keeps the one whose activation is nearest, goes to
the second, and so on: linear in the length.

Source: Nikolaou et al., SipIt (arXiv 2510.15511).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spliteasy.graph.segment import Segment
from spliteasy.privacy.attacks.base import WIRE, believed_head, crossing, first_tensor
from spliteasy.privacy.guesses import TokenGuess
from spliteasy.privacy.record import Adversary, View

MAX_VOCABULARY = 8192
SHOWN = 8
"""Sequences that are read."""


class Tokens:
    name = "tokens"
    adversaries = WIRE | {Adversary.HOLDER}
    source = "SipIt (arXiv 2510.15511)"

    def refuses(self, view: View) -> str | None:
        signature = view.job.signature.inputs
        if len(signature) != 1 or signature[0].dtype != "int64" or len(signature[0].shape) != 1:
            return "the input is not one sequence of tokens"
        size = vocabulary(view.job.head)
        if size is None or size > MAX_VOCABULARY:
            return f"the head has no embedding of at most {MAX_VOCABULARY} tokens"
        return None

    @torch.no_grad()
    def run(self, view: View) -> TokenGuess:
        head = believed_head(view)
        size = vocabulary(head)
        assert size is not None
        index = len(view.steps) - 1 if view.released is not None else 0
        sent = first_tensor(view.steps[index][0].activations)[:SHOWN]
        found = torch.stack([_read(head, row, size, view.job.signature.inputs[0].shape[0]) for row in sent])
        return TokenGuess(tokens=found, steps=range(index, index + 1))


def vocabulary(head: Segment) -> int | None:
    """The tokens that the head's first embedding knows; None without one."""
    document = head.program.document
    tables = [spec.shape[0] for spec in document.tensors if spec.kind == "parameter" and len(spec.shape) == 2]
    embeds = any("embedding" in node.op for node in document.train.nodes)
    return tables[0] if embeds and tables else None


def _read(head: Segment, sent: Tensor, size: int, length: int) -> Tensor:
    """The tokens of one sequence: int64 [length]."""
    tokens = torch.zeros(length, dtype=torch.int64)
    for place in range(length):
        tries = tokens.repeat(size, 1)
        tries[:, place] = torch.arange(size)
        made = first_tensor(crossing(head, (tries,)))
        tokens[place] = (made[:, place] - sent[place]).flatten(1).norm(dim=1).argmin()
    return tokens
