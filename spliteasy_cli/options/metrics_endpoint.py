"""`--metrics-port`: metrics and health of a running command, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError
from spliteasy.observability.meter import SILENT, Meter, Metric

if TYPE_CHECKING:
    from spliteasy.observability.prometheus import PrometheusMeter

MetricsPortOption = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65535,
        envvar="SPLITEASY_METRICS_PORT",
        help="Serve /metrics (Prometheus), /healthz and /readyz here; 0: any free port, see the log.",
        show_default="nothing is served",
    ),
]
MetricsHostOption = Annotated[
    str,
    typer.Option(
        "--metrics-host",
        envvar="SPLITEASY_METRICS_HOST",
        help="The address to serve them at. Nothing there asks for a password.",
    ),
]

METRICS_HOST = "127.0.0.1"


class Monitoring:
    """The meter of a command, and its pages. Without a port it measures and serves nothing."""

    def __init__(self, metrics: Iterable[Metric], *, port: int | None, host: str) -> None:
        """Raises UserError where the metrics' package is missing."""
        self._port = port
        self._host = host
        self._prometheus: PrometheusMeter | None = None
        if port is not None:
            try:
                from spliteasy.observability.prometheus import PrometheusMeter
            except ModuleNotFoundError as missing:
                raise UserError(
                    f"--metrics-port needs the package {missing.name}",
                    hint="pip install 'spliteasy[metrics]'",
                ) from None
            self._prometheus = PrometheusMeter(metrics)

    @property
    def meter(self) -> Meter:
        return self._prometheus or SILENT

    @asynccontextmanager
    async def serving(
        self, *, measure: Callable[[], Awaitable[None]], why_not_ready: Callable[[], Awaitable[str | None]]
    ) -> AsyncIterator[None]:
        """Serve while entered. `measure` sets the gauges, before each reading."""
        prometheus, port = self._prometheus, self._port
        if prometheus is None or port is None:
            yield
            return
        from spliteasy.observability.monitor import Pages, monitored
        from spliteasy.observability.prometheus import CONTENT_TYPE

        async def rendered() -> bytes:
            await measure()
            return prometheus.render()

        pages = Pages(metrics=rendered, content_type=CONTENT_TYPE, why_not_ready=why_not_ready)
        async with monitored(pages, port=port, host=self._host):
            yield
