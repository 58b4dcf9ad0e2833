"""Logs by structlog: readable lines on a terminal, one JSON object a line otherwise; never a password.

Bind what a task works on with `bound(job=..., session=..., step=...)`: every line below it carries that,
whichever module writes it. What the libraries underneath log by the standard module goes the same way.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from spliteasy.runtime.readable import shown

LEVELS = ("debug", "info", "warning", "error")
HIDDEN = "***"
_SECRET_KEYS = re.compile(r"passw|secret|token|credential|authorization", re.IGNORECASE)
_USERINFO = re.compile(r"(\w://[^\s/@:?#]*)[:/?#]\S*@")
_QUERY = re.compile(r"([?&](?:password|token|secret)=)[^\s&]*", re.IGNORECASE)


def bound(**values: Any) -> AbstractContextManager[None]:
    """Add the values to every log line of this task, and of those it starts, while it is entered."""
    return structlog.contextvars.bound_contextvars(**values)


def redact(text: str) -> str:
    """The text with the passwords of all URLs in it hidden. Rather hides too much than too little."""
    return _QUERY.sub(rf"\1{HIDDEN}", _USERINFO.sub(rf"\1:{HIDDEN}@", text))


def redact_event(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Hide passwords in every value, however deep, and values of telling names; a structlog processor."""
    return {key: _clean(key, value) for key, value in event.items()}


def configure(level: str = "info", *, stream: TextIO | None = None, as_json: bool | None = None) -> None:
    """Set logging up for the process; may be called again.

    `stream` None is standard error, looked up at each line (a live display may stand in for it).
    `as_json` None means: unless the stream is a terminal.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r}: one of {', '.join(LEVELS)}")
    out = stream or _StandardError()
    as_json = not out.isatty() if as_json is None else as_json
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S", utc=as_json),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact_event,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(as_json)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for library in ("aiormq", "asyncio", "matplotlib", "torch"):
        logging.getLogger(library).setLevel(max(root.level, logging.WARNING))


def _renderer(as_json: bool) -> Processor:
    if as_json:
        return structlog.processors.JSONRenderer(serializer=_dumps)
    return structlog.dev.ConsoleRenderer(pad_event_to=28, exception_formatter=structlog.dev.plain_traceback)


def _dumps(value: Any, **_options: Any) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _clean(key: object, value: Any) -> Any:
    if isinstance(key, str) and _SECRET_KEYS.search(key):
        return HIDDEN
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {k: _clean(k, v) for k, v in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes | bytearray):
        return [_clean(None, v) for v in value]
    if key in ("_record", "_from_structlog"):
        return value
    return redact(shown(str(value), lines=True))


class _StandardError:
    """`sys.stderr` as it is at the moment of each write."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()
