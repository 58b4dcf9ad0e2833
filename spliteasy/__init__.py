"""SplitEasy: train deep models on data that stays on mobile devices.

    from spliteasy import split
    parts = split(model, example_inputs, cuts=("stem", "pool"))

Names load on first use, so that importing a part of the package stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spliteasy.graph.segment import Segment, load_segment
    from spliteasy.splitting.losses import PortableLoss, load_function, trace_function
    from spliteasy.splitting.split import Boundary, Split, split

__all__ = [
    "Boundary",
    "PortableLoss",
    "Segment",
    "Split",
    "load_function",
    "load_segment",
    "split",
    "trace_function",
]

_HOMES = {
    "Boundary": "spliteasy.splitting.split",
    "PortableLoss": "spliteasy.splitting.losses",
    "Segment": "spliteasy.graph.segment",
    "Split": "spliteasy.splitting.split",
    "load_function": "spliteasy.splitting.losses",
    "load_segment": "spliteasy.graph.segment",
    "split": "spliteasy.splitting.split",
    "trace_function": "spliteasy.splitting.losses",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
