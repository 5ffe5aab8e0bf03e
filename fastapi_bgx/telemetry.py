"""The current OpenTelemetry span, carried into a task's context. The one module that knows it.

A task runs in the context of its `add_task`, but the span of FastAPI (or of opentelemetry-contrib)
around it is opened when it is called: without this, that span would not be current inside.
OpenTelemetry is looked up, not imported: who opens spans has imported it.
"""

import sys
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
        kind, span = type(error), trace.get_current_span()
        builtin = kind.__module__ == "builtins"
        name = kind.__qualname__ if builtin else f"{kind.__module__}.{kind.__qualname__}"
        span.set_attribute("error.type", name)
        span.set_status(trace.StatusCode.ERROR)
