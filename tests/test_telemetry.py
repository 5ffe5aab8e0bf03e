"""OpenTelemetry: the spans of FastAPI and of opentelemetry-contrib stay as they are with stock.

One span for each task, current inside of it, on the event loop and in a thread.
"""

import sys
from collections.abc import Iterator
from contextvars import Token
from typing import Any

import anyio
import fastapi
import pytest
from fastapi import FastAPI, Response, WebSocket
from opentelemetry import baggage, trace
from opentelemetry import context as otel
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.background import BackgroundTask

from fastapi_bgx import BackgroundTasks, Bgx, Settings, Tasks
from tests.asgi import FASTAPI, call, connect, running

pytestmark = pytest.mark.anyio
NATIVE = pytest.mark.skipif(FASTAPI < (0, 150), reason="FastAPI < 0.150 opens no spans")


class Spans:
    """What was exported, and which span was current inside each task."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.inside: list[int] = []

    def see(self) -> None:
        """A sync task, and what the others do: note the current span."""
        self.inside.append(trace.get_current_span().get_span_context().span_id)

    async def see_async(self) -> None:
        self.see()
        await anyio.sleep(0)
        self.see()
        del self.inside[-1]

    def named(self, *names: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name in names]

    @property
    def tasks(self) -> list[ReadableSpan]:
        return self.named("fastapi.background_task")

    def check(self, found: list[ReadableSpan], count: int) -> None:
        """One span for each task, and each was current inside of its task."""
        assert len(found) == count
        assert [identify(span) for span in found] == self.inside
        assert len(set(self.inside)) == count


def identify(span: ReadableSpan | None) -> int:
    assert span is not None
    context = span.get_span_context()
    assert context is not None
    return context.span_id


@pytest.fixture
def spans() -> Spans:
    return Spans()


# FastAPI's own spans.


def native_app(spans: Spans, settings: Settings | None = None) -> FastAPI:
    app = FastAPI(telemetry={"tracer_provider": spans.provider})
    Bgx(settings or Settings()).install(app)
    return app


@NATIVE
async def test_one_span_for_each_task_is_current_inside_of_it(spans: Spans) -> None:
    app = native_app(spans)

    @app.get("/async")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(spans.see)
        tasks.add_task(spans.see_async)
        tasks.add_task(lambda: spans.see_async())

    @app.get("/sync")
    def sync(tasks: Tasks) -> None:
        tasks.add_task(spans.see)
        tasks.add_task(spans.see_async)

    await call(app, "/async")
    await call(app, "/sync")
    spans.check(spans.tasks, 5)


@NATIVE
async def test_the_span_names_the_function_and_belongs_to_its_request(spans: Spans) -> None:
    app = native_app(spans)

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(spans.see)

    await call(app)
    (span,) = spans.tasks
    (request,) = spans.named("GET /")
    assert span.attributes is not None
    assert span.attributes["code.function.name"] == f"{__name__}.Spans.see"
    assert span.parent is not None
    assert span.parent.span_id == identify(request)


@NATIVE
async def test_tasks_that_stock_loses_have_a_span_too(spans: Spans) -> None:
    app = native_app(spans)

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> Response:
        tasks.add_task(spans.see)
        by_hand = BackgroundTasks()
        by_hand.add_task(spans.see_async)
        return Response(background=by_hand)

    @app.websocket("/")
    async def socket(websocket: WebSocket, tasks: fastapi.BackgroundTasks) -> None:
        await websocket.accept()
        tasks.add_task(spans.see)
        await websocket.close()

    await call(app)
    await connect(app)
    spans.check(spans.tasks, 3)


@NATIVE
@pytest.mark.parametrize("option", ["detached", "concurrent"])
async def test_a_task_that_runs_beside_has_a_span_that_is_current(
    spans: Spans, option: str
) -> None:
    app = native_app(spans)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        beside = (
            tasks.using(detached=True) if option == "detached" else tasks.using(concurrent=True)
        )
        beside.add_task(spans.see_async)
        beside.add_task(spans.see)

    async with running(app):
        await call(app)
    spans.inside.sort()
    spans.check(sorted(spans.tasks, key=identify), 2)


@NATIVE
@pytest.mark.parametrize("on_error", ["capture", "raise"])
async def test_the_span_of_a_task_that_failed_says_so(spans: Spans, on_error: Any) -> None:
    app = native_app(spans, Settings(on_error=on_error))

    async def fail() -> None:
        raise ValueError("boom")

    class Own(Exception): ...

    def fail_too() -> None:
        raise Own

    @app.get("/{which}")
    async def route(which: int, tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(spans.see)
        tasks.add_task(fail_too if which else fail)

    for path in ("/0", "/1"):
        try:
            await call(app, path)
        except (ValueError, Own):
            assert on_error == "raise"
    statuses = [span.status.status_code for span in spans.tasks]
    assert statuses == [StatusCode.UNSET, StatusCode.ERROR] * 2
    kinds = [(span.attributes or {}).get("error.type") for span in spans.tasks]
    assert kinds == [None, "ValueError", None, f"{__name__}.{Own.__qualname__}"]


# What is carried, and what is kept.


async def test_baggage_of_the_route_is_kept_beside_the_span_of_the_task(spans: Spans) -> None:
    app, seen = FastAPI(), list[tuple[object, object]]()
    Bgx(Settings()).install(app)
    tracer = spans.provider.get_tracer("test")

    def see() -> None:
        spans.see()
        seen.append((baggage.get_baggage("tenant"), baggage.get_baggage("server")))

    @app.get("/")
    def route(tasks: fastapi.BackgroundTasks) -> None:
        otel.attach(baggage.set_baggage("tenant", "a"))  # in a thread: seen there alone
        tasks.add_task(see)
        otel.attach(baggage.set_baggage("tenant", "b"))
        tasks.add_task(see)

    token = otel.attach(baggage.set_baggage("server", "s"))
    with tracer.start_as_current_span("request") as span:
        await call(app)
    otel.detach(token)
    assert seen == [("a", "s"), ("b", "s")]
    assert spans.inside == [span.get_span_context().span_id] * 2


async def test_a_span_that_is_open_at_add_task_stays_when_there_is_none_at_the_call(
    spans: Spans,
) -> None:
    app = FastAPI()
    Bgx(Settings()).install(app)
    opened: list[int] = []

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        with spans.provider.get_tracer("test").start_as_current_span("work") as span:
            tasks.add_task(spans.see)
            opened.append(span.get_span_context().span_id)
        otel.attach(baggage.set_baggage("tenant", "a", Context()))

    await call(app)
    assert spans.inside == opened


async def test_baggage_alone_is_carried_where_nobody_has_imported_the_api_for_spans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, seen = FastAPI(), list[object]()
    Bgx(Settings()).install(app)

    async def see_and_fail() -> None:
        seen.append(baggage.get_baggage("tenant"))
        raise ValueError("boom")

    @app.get("/")
    def route(tasks: fastapi.BackgroundTasks) -> None:
        otel.attach(baggage.set_baggage("tenant", "a"))
        tasks.add_task(see_and_fail)

    token = otel.attach(baggage.set_baggage("server", "s"))
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    await call(app)
    otel.detach(token)
    assert seen == ["a"]


# opentelemetry-contrib, which replaces `BackgroundTask.__call__`.


@pytest.fixture
def contrib(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BackgroundTask]]:
    """What opentelemetry-instrumentation-fastapi 0.66 does; gives the tasks that were called."""
    original, called = BackgroundTask.__call__, list[BackgroundTask]()
    tracer = spans.provider.get_tracer("contrib")

    async def traced_call(self: BackgroundTask) -> None:
        called.append(self)
        name = getattr(self.func, "__name__", type(self.func).__name__)
        with tracer.start_as_current_span(f"BackgroundTask {name}"):
            return await original(self)

    monkeypatch.setattr(BackgroundTask, "__call__", traced_call)
    token: Token[Context] = otel.attach(Context())
    yield called
    otel.detach(token)


async def test_contribs_span_is_opened_once_for_each_task_and_current_inside(
    spans: Spans, contrib: list[BackgroundTask]
) -> None:
    app = FastAPI()
    Bgx(Settings()).install(app)

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> Response:
        tasks.add_task(spans.see)
        tasks.add_task(spans.see_async)
        by_hand = BackgroundTasks([BackgroundTask(spans.see)])
        by_hand.add_task(spans.see_async)
        return Response(background=by_hand)

    await call(app)
    assert len(contrib) == 4
    names = ["BackgroundTask see", "BackgroundTask see_async"]
    spans.check(spans.named(*names), 4)
    assert [span.name for span in spans.named(*names)] == names * 2


async def test_contribs_span_is_opened_for_a_task_that_runs_beside(
    spans: Spans, contrib: list[BackgroundTask]
) -> None:
    app = FastAPI()
    Bgx(Settings()).install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.using(detached=True).add_task(spans.see_async)

    async with running(app):
        await call(app)
    spans.check(spans.named("BackgroundTask see_async"), 1)


async def test_a_task_of_contrib_that_failed_is_captured_and_hurts_no_sibling(
    spans: Spans, contrib: list[BackgroundTask]
) -> None:
    app = FastAPI()
    Bgx(Settings()).install(app)

    async def fail() -> None:
        raise ValueError("boom")

    @app.get("/")
    async def route(tasks: fastapi.BackgroundTasks) -> None:
        tasks.add_task(fail)
        tasks.add_task(spans.see)

    await call(app)
    (failed,) = spans.named("BackgroundTask fail")
    assert failed.status.status_code is StatusCode.ERROR
    spans.check(spans.named("BackgroundTask see"), 1)
