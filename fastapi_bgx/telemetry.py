"""The current OpenTelemetry span, carried into a task's context and into its worker process.

A task runs in the context of its `add_task`, but the span of FastAPI (or of opentelemetry-contrib)
around it is opened when it is called: without this, that span would not be current inside.
OpenTelemetry is looked up, not imported: who opens spans has imported it. Spans of our own are
opened by `listeners/opentelemetry`.
"""

import contextlib
import sys
from collections.abc import Generator
from contextvars import Context
from typing import Any


def tracing() -> bool:
    """True when there may be a span: FastAPI and others leave the context empty otherwise."""
    otel: Any = sys.modules.get("opentelemetry.context")
    return otel is not None and bool(otel.get_current())


def carry_span(into: Context) -> None:
    """Make the span that is current here the current one in `into`, and keep the rest of it.

    The rest is OpenTelemetry's context at `add_task`, such as baggage that a sync route set.
    """
    if not tracing():
        return
    otel: Any = sys.modules["opentelemetry.context"]
    trace: Any = sys.modules.get("opentelemetry.trace")
    here = otel.get_current()
    carried = type(here)({**here, **into.run(otel.get_current)})
    if trace is not None:
        span = trace.get_current_span(here)
        if span.get_span_context().is_valid:
            carried = trace.set_span_in_context(span, carried)
    into.run(otel.attach, carried)


def mark_failed(error: BaseException) -> None:
    """Say on the current span that its task failed, as FastAPI does when it sees the error."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        span = trace.get_current_span()
        span.set_attribute("error.type", error_type(error))
        span.set_status(trace.StatusCode.ERROR)


def error_type(error: BaseException) -> str:
    """The class of an error as the semantic conventions write it: with its module, if it has one.

    What is built into Python has none.
    """
    kind = type(error)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def carrier_of(context: Context) -> dict[str, str]:
    """What another process needs to go on with the trace of `context`; empty without a trace."""
    otel: Any = sys.modules.get("opentelemetry.context")
    carrier: dict[str, str] = {}
    if otel is not None and context.run(otel.get_current):
        with contextlib.suppress(Exception):  # a propagator of the application hurts no task
            from opentelemetry import propagate

            context.run(propagate.inject, carrier)
    return carrier


@contextlib.contextmanager
def carried(carrier: dict[str, str]) -> Generator[None, None, None]:
    """In another process: go on with the trace that `carrier_of` told of."""
    otel: Any = None
    token: Any = None
    if carrier:
        with contextlib.suppress(Exception):
            from opentelemetry import context as otel
            from opentelemetry import propagate

            token = otel.attach(propagate.extract(carrier))
    try:
        yield
    finally:
        if token is not None:
            otel.detach(token)
