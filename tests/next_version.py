"""This build as the next version will be: `python -m tests.next_version worker …` runs its command line.

It writes the next minor version of the wire, with a field in each object of a message that nobody here
knows, and it can do what jobs may need then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import broker.protocol.envelope as envelope
import spliteasy.job.package as package
from broker.transport.base import Frame
from spliteasy_cli import main

FEATURE = "of-the-next-version"
FIELD = "of_the_next_version"


def with_more(value: Any) -> Any:
    """The same with a field that nobody knows in each object, as a newer version may write it."""
    if isinstance(value, dict):
        # What a codec adds is the codec's own: it is no record.
        more = {name: each if name == "packing" else with_more(each) for name, each in value.items()}
        return {**more, FIELD: [1, None]}
    return [with_more(each) for each in value] if isinstance(value, list) else value


def become_the_next_version() -> None:
    """Change this process's build."""
    pack = envelope._pack

    def pack_more(header: dict[str, Any] | None, values: Sequence[envelope.Value]) -> list[Frame]:
        prefix, text, *rest = pack(with_more(header), values)
        said = envelope._PREFIX.pack(envelope.MAGIC, envelope.VERSION, envelope.MINOR + 1, len(text))
        assert len(said) == len(prefix)
        return [said, text, *rest]

    envelope._pack = pack_more
    package.FEATURES |= {FEATURE}


if __name__ == "__main__":
    become_the_next_version()
    sys.exit(main())
