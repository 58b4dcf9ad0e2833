"""Reading a job file, with errors that name the key, what is wrong with it and what would do."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from spliteasy.errors import JobError
from spliteasy.job.spec import JobSpec

MAX_FILE_BYTES = 1 << 20
MAX_ERRORS_SHOWN = 5
MAX_VALUE_SHOWN = 60


def load_job_file(path: str | Path) -> JobSpec:
    """The job that the TOML file at `path` describes.

    Raises JobError: one line with the file, the path of each wrong key and what is wrong with it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise JobError(f"{path}: no such job file", hint="give the path of a job.toml") from None
    except OSError as error:
        raise JobError(f"{path}: can't be read: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise JobError(f"{path}: larger than {MAX_FILE_BYTES} bytes: not a job file")
    try:
        data = tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path}: not TOML: {error}") from error
    return parse_job(data, source=str(path))


def parse_job(data: dict[str, Any], *, source: str = "job") -> JobSpec:
    """Validate what a job file holds; `source` begins each error. Raises JobError."""
    try:
        return JobSpec.model_validate(data)
    except ValidationError as error:
        raise JobError(f"{source}: {describe(error, data)}") from error


def describe(error: ValidationError, data: Any) -> str:
    """One line for all errors: `path.of.key: what is wrong; path.of.another: …`."""
    details = error.errors(include_url=False)
    lines = [_line(detail, data) for detail in details[:MAX_ERRORS_SHOWN]]
    if len(details) > MAX_ERRORS_SHOWN:
        lines.append(f"and {len(details) - MAX_ERRORS_SHOWN} more")
    return "; ".join(lines)


def _line(detail: ErrorDetails, data: Any) -> str:
    path = _path(detail, data)
    if detail["type"] == "unknown_key":
        path = f"{path}.{detail['ctx']['key']}" if path else str(detail["ctx"]["key"])
    return f"{path}: {_message(detail)}" if path else _message(detail)


def _message(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind in ("unknown_key", "job"):
        return detail["msg"]
    if kind == "missing":
        return "is missing"
    if kind == "union_tag_not_found":
        return "name is missing"
    if kind == "union_tag_invalid":
        ctx = detail["ctx"]
        return f"name must be one of {ctx['expected_tags']}, not {ctx['tag']!r}"
    message = detail["msg"].removeprefix("Input ").removeprefix("Value ")
    value = repr(detail["input"])
    if len(value) > MAX_VALUE_SHOWN:
        value = value[: MAX_VALUE_SHOWN - 1] + "…"
    if kind == "string_pattern_mismatch" and "a-z0-9-" in message:
        message = "should be 1 to 63 of the characters a-z, 0-9 and -"
    elif kind == "string_pattern_mismatch":
        message = "should be written module:function"
    return f"{message}, not {value}"


def _path(detail: ErrorDetails, data: Any) -> str:
    """`optimizer.groups[0].lr`. Steps that the data does not have (tags of a union) are left out."""
    path = ""
    for index, part in enumerate(detail["loc"]):
        is_missing_key = detail["type"] == "missing" and index == len(detail["loc"]) - 1
        if isinstance(part, int):
            path += f"[{part}]"
            data = data[part] if isinstance(data, (list, tuple)) and part < len(data) else None
        elif isinstance(data, dict) and (part in data or is_missing_key):
            path += f".{part}" if path else part
            data = data.get(part)
    return path
