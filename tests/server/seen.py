"""An application that is seen: by Sentry, with its integrations, and by OpenTelemetry.

Nothing leaves the process: events and spans are printed, one JSON object a line. `LOG=stdlib` hands
the log to the standard library, where Sentry hears it.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import anyio
import sentry_sdk
import structlog
from fastapi import FastAPI
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from fastapi_bgx import Bgx, Retry, Tasks
from fastapi_bgx.listeners import opentelemetry, sentry

if os.environ.get("LOG") == "stdlib":
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def say(event: str, fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


class Printed(Transport):
    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            if item.type == "event":
                payload: Any = item.payload.json
                errors = payload.get("exception", {}).get("values", [])
                say(
                    "sentry",
                    {
                        "error": [error["type"] for error in errors][-1:],
                        "url": payload.get("request", {}).get("url"),
                        "route": payload.get("transaction"),
                        "tags": payload.get("tags"),
                    },
                )


class PrintedSpans(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            context: Any = span.get_span_context()
            say(
                "span",
                {
                    "name": span.name,
                    "trace": context.trace_id,
                    "span": context.span_id,
                    "parent": span.parent and span.parent.span_id,
                    "links": [link.context.span_id for link in span.links],
                    "attributes": dict(span.attributes or {}),
                },
            )
        return SpanExportResult.SUCCESS


sentry_sdk.init(dsn="https://key@127.0.0.1/1", transport=Printed)
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(PrintedSpans()))
reader = InMemoryMetricReader()

app = FastAPI()
bgx = Bgx()
bgx.install(app)
sentry.instrument(bgx)
opentelemetry.instrument(bgx)  # before there is a provider
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([reader]))


async def fail() -> None:
    await anyio.sleep(0)
    raise ConnectionError("the bank does not answer")


def fail_there() -> None:
    raise KeyError("card")


attempts = 0


async def fail_once() -> None:
    global attempts
    attempts += 1
    if attempts == 1:
        raise ConnectionError("not yet")


@app.get("/up")
async def up() -> int:
    return os.getpid()


@app.post("/mark/{number}")
async def mark(number: int) -> None:
    say("mark", {"number": number})


@app.get("/fail/{detached}")
async def add_failing(tasks: Tasks, detached: bool) -> None:
    tasks.using(detached=detached).add_task(fail)
    tasks.using(detached=detached).add_task(fail_there)


@app.get("/heal")
async def add_healed(tasks: Tasks) -> None:
    retry = Retry(wait_initial=0, wait_jitter=0)
    tasks.using(detached=True, retry=retry).add_task(fail_once)


@app.get("/metrics")
async def read_metrics() -> dict[str, int]:
    """How many data points each metric has."""
    data: Any = reader.get_metrics_data()
    return {
        metric.name: len(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
