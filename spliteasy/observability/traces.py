"""Traces show what a training step spends its time on, on both sides. Only a tracer makes them.

A trace is one step of one attempt of a session. Its id and that of its root span are functions of those
three, so that a request that is sent again is the same bytes, and both sides name the same trace.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Context:
    """A place in a trace: ids in hexadecimal, 32 and 16 digits."""

    trace: str
    span: str

    @property
    def traceparent(self) -> str:
        """The context as the W3C's Trace Context writes it, marked as sampled."""
        return f"00-{self.trace}-{self.span}-01"

    def child(self) -> Context:
        """Return a new span of the same trace."""
        return Context(self.trace, secrets.token_hex(8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that has ended. Times are Unix time in nanoseconds."""

    name: str
    context: Context
    parent: str | None
    """The span that it belongs to; None for a trace's root."""
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, str | int] = field(default_factory=dict)


class Tracer(Protocol):
    """Takes spans; must neither block nor raise."""

    def record(self, span: Span, /) -> None: ...


def step_context(session: str, attempt: int, nonce: str, step: int) -> Context:
    """The trace of a step, and its root span."""
    digest = hashlib.blake2b(f"{session} {attempt} {nonce} {step}".encode(), digest_size=24).hexdigest()
    return Context(digest[:32], digest[32:])


def parse_traceparent(text: str | None) -> Context | None:
    """The context in a `traceparent` of the right form (messages check it); None for none, and for zeros."""
    if text is None:
        return None
    _, trace, span, _ = text.split("-")
    return Context(trace, span) if int(trace, 16) and int(span, 16) else None
