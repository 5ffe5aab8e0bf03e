"""`fastapi_bgx[opentelemetry]`: a span for each attempt of a task, and metrics of all of them.

`instrument(bgx)` is all that is public. The names of spans, attributes and metrics are a promise:
docs/how-to/opentelemetry.md lists them.
"""

from functools import cache
from importlib.metadata import version
from typing import Any, Protocol
from weakref import WeakSet

try:
    from opentelemetry import metrics, trace
except ImportError as _missing:
    raise ImportError(
        "traces and metrics need OpenTelemetry: pip install 'fastapi-bgx[opentelemetry]'"
    ) from _missing

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from fastapi_bgx.events import Listener
from fastapi_bgx.listeners.opentelemetry.demand import Demand
from fastapi_bgx.listeners.opentelemetry.measures import Instruments, Measures
from fastapi_bgx.listeners.opentelemetry.spans import Spans
from fastapi_bgx.reports import Stats

SCOPE = "fastapi_bgx"
"""The instrumentation scope of all spans and metrics."""


class Observed(Protocol):
    """What has to be known of a `Bgx`."""

    def listen(self, listener: Listener) -> Listener:
        """Tell `listener` of every event."""
        ...

    def stats(self) -> Stats:
        """What runs and waits now."""
        ...


_traced: WeakSet[Any] = WeakSet()


def instrument(
    bgx: Observed,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Open a span for each attempt of the tasks of `bgx`, and measure them.

    With the global providers, unless others are given; these may be set later. A second call for
    the same `bgx` does nothing.
    """
    if bgx in _traced:
        return
    _traced.add(bgx)
    tracer = trace.get_tracer(SCOPE, version("fastapi-bgx"), tracer_provider)
    instruments = _instruments(meter_provider)
    instruments.watched.add(bgx)
    bgx.listen(Spans(tracer, Demand(lambda: tracer_provider or trace.get_tracer_provider())))
    meters = Demand(lambda: meter_provider or metrics.get_meter_provider())
    bgx.listen(Measures(instruments, meters))


@cache
def _instruments(provider: MeterProvider | None) -> Instruments:
    """Those of one provider, which every `Bgx` that reports to it shares."""
    return Instruments(metrics.get_meter(SCOPE, version("fastapi-bgx"), provider))
