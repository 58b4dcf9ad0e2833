"""`--traces`: where the spans of each step go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError

if TYPE_CHECKING:
    from spliteasy.observability.traces import Tracer

TracesOption = Annotated[
    str | None,
    typer.Option(
        "--traces",
        envvar="SPLITEASY_TRACES",
        metavar="URL",
        help="Send a trace of each step to this OpenTelemetry collector (OTLP over HTTP, such as "
        "http://127.0.0.1:4318).",
        show_default="none are made",
    ),
]


@contextmanager
def tracing(url: str | None, *, service: str, instance: str) -> Iterator[Tracer | None]:
    """Give a tracer that takes spans while it is entered. Without a URL it is None, and nothing is imported.
    Raises UserError."""
    if url is None:
        yield None
        return
    if not url.startswith(("http://", "https://")):
        raise UserError("--traces is no URL of HTTP", hint="http://127.0.0.1:4318")
    try:
        from spliteasy.observability.otel import OtelTracer
    except ModuleNotFoundError as missing:
        raise UserError(
            f"--traces needs the package {missing.name}", hint="pip install 'spliteasy[otel]'"
        ) from None
    tracer = OtelTracer(url, service=service, instance=instance)
    try:
        yield tracer
    finally:
        tracer.close()
