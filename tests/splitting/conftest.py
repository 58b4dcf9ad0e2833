"""One thread: the oracle is bit for bit."""

from tests.one_thread import one_thread

__all__ = ["one_thread"]
