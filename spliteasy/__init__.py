"""SplitEasy: train deep models on data that stays on mobile devices.

    from spliteasy import split
    parts = split(model, example_inputs, cuts=("stem", "pool"))

Names load on first use, so that importing a part of the package stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spliteasy.segment import Segment, load_segment
    from spliteasy.splitting.splitting import Boundary, Split, split

__all__ = ["Boundary", "Segment", "Split", "load_segment", "split"]

_HOMES = {
    "Boundary": "spliteasy.splitting.splitting",
    "Segment": "spliteasy.segment",
    "Split": "spliteasy.splitting.splitting",
    "load_segment": "spliteasy.segment",
    "split": "spliteasy.splitting.splitting",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
