"""One thread, as everywhere where bits are compared."""

from tests.one_thread import one_thread

__all__ = ["one_thread"]
