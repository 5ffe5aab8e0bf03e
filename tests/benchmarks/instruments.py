"""What `listeners` listens with: each instrument as an application sets it up, and sending nothing.

Only what is handed over here is used: no provider and no registry of the whole process.
"""

from collections.abc import Callable

import sentry_sdk
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from fastapi_bgx import Bgx
from fastapi_bgx.listeners import opentelemetry as of_opentelemetry
from fastapi_bgx.listeners import prometheus as of_prometheus
from fastapi_bgx.listeners import sentry as of_sentry

MOST_SPANS = 10_000
"""So many wait for the thread that exports them; of more, some were dropped."""


def prometheus(bgx: Bgx) -> None:
    """Counters and histograms in a registry of their own, which keeps itself alive with them."""
    of_prometheus.instrument(bgx, registry=CollectorRegistry())


def opentelemetry(bgx: Bgx) -> None:
    """With the global providers, which nobody has set."""
    of_opentelemetry.instrument(bgx)


def sentry(bgx: Bgx) -> None:
    """The listener; the SDK is started by `start_sentry`."""
    of_sentry.instrument(bgx)


class Sdk:
    """OpenTelemetry's SDK, with everything in memory."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._tracers = TracerProvider(shutdown_on_exit=False)
        self._processor = BatchSpanProcessor(self._spans, max_queue_size=MOST_SPANS)
        self._tracers.add_span_processor(self._processor)
        self._meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)

    def instrument(self, bgx: Bgx) -> None:
        """Spans and metrics of all tasks of `bgx`."""
        of_opentelemetry.instrument(bgx, tracer_provider=self._tracers, meter_provider=self._meters)

    def forget(self) -> None:
        """Wait until all spans are exported, and let go of them."""
        self._processor.force_flush()
        self._spans.clear()

    def stop(self) -> None:
        """End its threads."""
        self._tracers.shutdown()
        self._meters.shutdown()


class Nowhere(Transport):
    """Takes what it should send."""

    def capture_envelope(self, envelope: Envelope) -> None:
        pass


def start_sentry() -> Callable[[], None]:
    """Start its SDK without integrations, which would change others; returns what stops it."""
    client = sentry_sdk.Client(
        dsn="https://key@127.0.0.1/1",
        transport=Nowhere(),
        default_integrations=False,
        auto_enabling_integrations=False,
    )
    scope = sentry_sdk.Scope.get_global_scope()
    before = scope.client
    scope.set_client(client)

    def stop() -> None:
        scope.set_client(before)
        client.close()

    return stop
