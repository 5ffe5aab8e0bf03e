"""`fastapi_bgx[opentelemetry]`: a span for each attempt, current inside of it, and metrics."""

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import copy_context
from functools import partial
from typing import Any
from weakref import ref

import anyio
import pytest
from fastapi import FastAPI, HTTPException
from opentelemetry import baggage, metrics, propagate, trace
from opentelemetry import context as otel
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanContext, StatusCode

from fastapi_bgx import Bgx, Limit, Retry, Settings, Tasks
from fastapi_bgx.events import TaskQueued, TaskRejected, TaskStarted, TaskSucceeded
from fastapi_bgx.listeners.opentelemetry import instrument, measures
from fastapi_bgx.listeners.opentelemetry.demand import Demand
from fastapi_bgx.listeners.opentelemetry.spans import Spans
from fastapi_bgx.telemetry import carried, carrier_of
from tests import work
from tests.asgi import FASTAPI, call
from tests.logs import logged, named
from tests.supervision import serving, tasks_of, until

pytestmark = pytest.mark.anyio
NATIVE = pytest.mark.skipif(FASTAPI < (0, 150), reason="FastAPI < 0.150 opens no spans")
AT_ONCE: dict[str, Any] = {"wait_initial": 0, "wait_jitter": 0}


class Telemetry:
    """The providers of one test, and what reached them."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader])
        self.inside: list[SpanContext] = []

    def bgx(self, **settings: Any) -> Bgx:
        """One that reports here."""
        bgx = Bgx(Settings(**settings))
        self.instrument(bgx)
        return bgx

    def instrument(self, bgx: Bgx) -> None:
        instrument(bgx, tracer_provider=self.tracers, meter_provider=self.meters)

    def request(self) -> Any:
        """A span like that of a request, current inside of the block."""
        return self.tracers.get_tracer("test").start_as_current_span("request")

    # Tasks.

    def see(self) -> None:
        self.inside.append(trace.get_current_span().get_span_context())

    async def see_async(self) -> None:
        await anyio.sleep(0)
        self.see()

    async def see_and_fail(self) -> None:
        self.see()
        raise ValueError("boom")

    # What was told.

    def spans(self) -> list[ReadableSpan]:
        found = self._exporter.get_finished_spans()
        return [span for span in found if span.name.startswith("task ")]

    def span(self) -> ReadableSpan:
        (span,) = self.spans()
        return span

    def named(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self._exporter.get_finished_spans() if span.name == name]
        return span

    def points(self, metric: str) -> list[Any]:
        data: Any = self._reader.get_metrics_data()
        if data is None:
            return []
        found = [
            each
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for each in scope.metrics
            if each.name == metric
        ]
        return [point for each in found for point in each.data.data_points]

    def values(self, metric: str) -> dict[tuple[Any, ...], Any]:
        """The values of a metric by its attributes, in the order of their names."""
        found = {}
        for point in self.points(metric):
            key = tuple(value for _, value in sorted(point.attributes.items()))
            assert key not in found
            found[key] = getattr(point, "value", None) or getattr(point, "count", 0)
        return found


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    found = Telemetry()
    yield found
    found.meters.shutdown()


def ids(span: ReadableSpan) -> SpanContext:
    context: Any = span.get_span_context()
    assert context is not None
    found: SpanContext = context
    return found


def linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def runs(bgx: Bgx) -> bool:
    return bgx.stats().running == 1


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# One span for each attempt.


@pytest.mark.parametrize("detached", [False, True])
async def test_the_span_of_an_attempt_is_current_inside_and_a_child_of_the_request(
    telemetry: Telemetry, detached: bool
) -> None:
    async with serving() as bgx:
        telemetry.instrument(bgx)
        with telemetry.request() as request:
            tasks = await tasks_of(bgx)
            for function in (telemetry.see, telemetry.see_async):
                tasks.using(detached=detached).add_task(function)
            await tasks()
        await until(lambda: len(telemetry.spans()) == 2)
    around = request.get_span_context()
    for span in telemetry.spans():
        assert ids(span).trace_id == around.trace_id
        assert span.parent is not None
        assert span.parent.span_id == around.span_id
        assert linked(span) == [around.span_id]
    assert {each.span_id for each in telemetry.inside} == {
        ids(span).span_id for span in telemetry.spans()
    }
    assert [span.name for span in telemetry.spans()] == [
        "task Telemetry.see",
        "task Telemetry.see_async",
    ]


async def test_the_span_of_a_task_without_a_request_has_no_parent(telemetry: Telemetry) -> None:
    tasks = await tasks_of(telemetry.bgx())
    tasks.add_task(telemetry.see)
    await tasks()
    assert telemetry.span().parent is None
    assert telemetry.span().links == ()
    assert telemetry.inside == [ids(telemetry.span())]


async def test_all_attempts_without_a_request_are_in_one_trace(telemetry: Telemetry) -> None:
    tasks = await tasks_of(telemetry.bgx())
    tasks.using(retry=Retry(attempts=3, **AT_ONCE)).add_task(telemetry.see_and_fail)
    await tasks()
    first, second, third = telemetry.spans()
    assert first.parent is None
    assert len({ids(span).trace_id for span in (first, second, third)}) == 1
    assert [linked(span) for span in (second, third)] == [
        [ids(first).span_id],
        [ids(second).span_id],
    ]


@NATIVE
async def test_the_span_of_fastapi_is_kept_and_is_the_parent(telemetry: Telemetry) -> None:
    app = FastAPI(telemetry={"tracer_provider": telemetry.tracers})
    telemetry.bgx().install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(telemetry.see)

    await call(app)
    span, around = telemetry.span(), telemetry.named("fastapi.background_task")
    assert span.parent is not None
    assert span.parent.span_id == ids(around).span_id
    assert linked(span) == [ids(telemetry.named("fastapi.endpoint")).span_id]
    assert around.parent is not None
    assert around.parent.span_id == ids(telemetry.named("GET /")).span_id
    assert telemetry.inside == [ids(span)]


async def test_each_attempt_has_a_span_that_leads_to_the_one_before(telemetry: Telemetry) -> None:
    attempts = 0

    async def fail_twice() -> None:
        nonlocal attempts
        attempts += 1
        telemetry.see()
        if attempts < 3:
            raise ValueError(f"attempt {attempts}")

    with telemetry.request() as request:
        tasks = await tasks_of(telemetry.bgx())
        tasks.using(retry=Retry(attempts=3, **AT_ONCE)).add_task(fail_twice)
        await tasks()
    first, second, third = telemetry.spans()
    assert telemetry.inside == [ids(span) for span in (first, second, third)]
    added = request.get_span_context().span_id
    assert linked(first) == [added]
    assert linked(second) == [added, ids(first).span_id]
    assert linked(third) == [added, ids(second).span_id]
    for number, span in enumerate((first, second, third), 1):
        assert span.parent is not None
        assert span.parent.span_id == added
        assert attributes(span)["bgx.attempt"] == number
    assert [attributes(span)["bgx.status"] for span in (first, second, third)] == [
        "retrying",
        "retrying",
        "succeeded",
    ]
    assert attributes(first)["bgx.retry_in_s"] == 0.0
    assert [span.status.status_code for span in (first, second, third)] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]


async def test_a_span_tells_what_ran_and_how(telemetry: Telemetry) -> None:
    bgx = telemetry.bgx()
    tasks = await tasks_of(bgx)
    options = tasks.using(name="look", limit=Limit("eyes", 1), executor="thread")
    task = options.add_task(partial(telemetry.see))
    await tasks()
    found = attributes(telemetry.span())
    assert found.pop("bgx.queued_s") == task.queued_s
    assert found == {
        "code.function.name": f"{__name__}.Telemetry.see",
        "bgx.task": "look",
        "bgx.task_id": task.id,
        "bgx.attempt": 1,
        "bgx.executor": "thread",
        "bgx.detached": False,
        "bgx.limit": "eyes",
        "bgx.status": "succeeded",
    }
    assert telemetry.span().name == "task look"
    assert telemetry.span().kind is trace.SpanKind.INTERNAL


async def test_an_object_that_is_called_has_the_name_of_its_class(telemetry: Telemetry) -> None:
    class Called:
        def __call__(self) -> None: ...

    tasks = await tasks_of(telemetry.bgx())
    tasks.add_task(Called())
    await tasks()
    name = attributes(telemetry.span())["code.function.name"]
    assert name == f"{__name__}.{Called.__qualname__}"


async def test_the_span_of_a_failure_has_the_error(telemetry: Telemetry) -> None:
    class Lost(Exception): ...

    def lose() -> None:
        raise Lost("in the post")

    tasks = await tasks_of(telemetry.bgx())
    tasks.add_task(telemetry.see_and_fail)
    tasks.add_task(lose)
    tasks.using(timeout=0.001).add_task(anyio.sleep, 10)
    await tasks()
    failed, lost, slow = telemetry.spans()
    assert [span.status.description for span in (failed, lost)] == [
        "ValueError: boom",
        "Lost: in the post",
    ]
    assert [attributes(span)["error.type"] for span in (failed, lost, slow)] == [
        "ValueError",
        f"{__name__}.{Lost.__qualname__}",
        "TimeoutError",
    ]
    assert attributes(slow)["bgx.status"] == "timed_out"
    for span in (failed, lost, slow):
        assert span.status.status_code is StatusCode.ERROR
        (event,) = span.events
        assert event.name == "exception"
    recorded = failed.events[0].attributes or {}
    assert recorded["exception.message"] == "boom"
    assert "in see_and_fail" in str(recorded["exception.stacktrace"])


async def test_an_error_that_cannot_say_what_it_is_leaves_no_span_open(
    telemetry: Telemetry,
) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    async def fail() -> None:
        raise Mute

    with logged() as lines:
        tasks = await tasks_of(telemetry.bgx())
        tasks.add_task(fail)
        await tasks()
    assert attributes(telemetry.span())["bgx.status"] == "failed"
    (line,) = named(lines, "bgx.listener_failed")
    assert "Spans" in line["listener"]


async def test_the_span_of_a_cancelled_task_is_no_error_and_says_why(telemetry: Telemetry) -> None:
    async with serving() as bgx:
        telemetry.instrument(bgx)
        tasks = await tasks_of(bgx)
        task = tasks.using(detached=True).add_task(anyio.sleep, 10)
        await tasks()
        await until(lambda: task.status == "running")
        task.cancel()
        await task.wait()
    assert telemetry.span().status.status_code is StatusCode.UNSET
    assert attributes(telemetry.span())["bgx.reason"] == "cancel() was called"
    assert telemetry.span().events == ()


async def test_what_never_ran_has_no_span(telemetry: Telemetry) -> None:
    app, bgx = FastAPI(), telemetry.bgx()
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        tasks.add_task(telemetry.see)
        raise HTTPException(500)

    with telemetry.request():
        await call(app)
    assert telemetry.spans() == []


async def test_a_span_that_is_not_sampled_costs_no_traceback(telemetry: Telemetry) -> None:
    bgx = Bgx(Settings())
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrument(bgx, tracer_provider=provider, meter_provider=telemetry.meters)
    tasks = await tasks_of(bgx)
    tasks.add_task(telemetry.see_and_fail)
    await tasks()
    assert not telemetry.inside[0].trace_flags.sampled
    assert exporter.get_finished_spans() == ()


async def test_tasks_do_not_see_the_spans_of_their_siblings(telemetry: Telemetry) -> None:
    gate = anyio.Event()

    async def wait() -> None:
        telemetry.see()
        await gate.wait()
        telemetry.see()

    async def open_gate() -> None:
        telemetry.see()
        gate.set()

    tasks = await tasks_of(telemetry.bgx())
    tasks.using(concurrent=True).add_task(wait)
    tasks.using(concurrent=True).add_task(open_gate)
    await tasks()
    waiting, opening, still_waiting = telemetry.inside
    assert waiting == still_waiting != opening


async def test_what_a_task_adds_is_a_child_of_its_span(telemetry: Telemetry) -> None:
    tasks = await tasks_of(telemetry.bgx())

    async def add() -> None:
        tasks.add_task(telemetry.see)

    tasks.add_task(add)
    await tasks()
    outer, inner = telemetry.spans()
    assert inner.parent is not None
    assert inner.parent.span_id == ids(outer).span_id


async def test_the_lines_of_the_end_are_logged_in_the_span(telemetry: Telemetry) -> None:
    found: dict[str, int] = {}

    def note(_: Any, __: str, line: Any) -> Any:
        found[line["event"]] = trace.get_current_span().get_span_context().span_id
        return line

    with logged(note):
        tasks = await tasks_of(telemetry.bgx())
        tasks.add_task(telemetry.see_and_fail)
        await tasks()
    assert found["task.failed"] == ids(telemetry.span()).span_id


async def test_a_task_that_had_begun_before_has_no_span(telemetry: Telemetry) -> None:
    async with serving() as bgx:
        gate = anyio.Event()
        tasks = await tasks_of(bgx)
        retry = Retry(attempts=2, **AT_ONCE)

        async def fail_late() -> None:
            await gate.wait()
            raise ValueError

        tasks.using(detached=True, retry=retry).add_task(fail_late)
        task = tasks.using(detached=True, concurrent=True).add_task(gate.wait)
        await tasks()
        await until(lambda: task.status == "running")
        with logged() as lines:
            telemetry.instrument(bgx)
            gate.set()
            await task.wait()
            await until(lambda: not bgx.stats().running)
    assert named(lines, "bgx.listener_failed") == []
    assert all(attributes(span)["bgx.attempt"] == 2 for span in telemetry.spans())


async def test_nobody_listens_until_there_is_a_provider(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    bgx = Bgx(Settings(log_events=frozenset()))
    instrument(bgx)
    await tasks_of(bgx)
    unheard = {TaskQueued, TaskStarted, TaskSucceeded, TaskRejected}
    assert not unheard & bgx.runners.publisher.heard.keys()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: telemetry.tracers)
    await tasks_of(bgx)
    assert TaskQueued in bgx.runners.publisher.heard, "for the links of spans"
    assert TaskRejected not in bgx.runners.publisher.heard, "no span has it"
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: telemetry.meters)
    await tasks_of(bgx)
    assert TaskRejected in bgx.runners.publisher.heard


async def test_nothing_is_kept_of_a_task_that_has_ended(telemetry: Telemetry) -> None:
    bgx = Bgx(Settings())
    spans = Spans(telemetry.tracers.get_tracer("test"), Demand(lambda: telemetry.tracers))
    bgx.listen(spans)
    with telemetry.request():
        tasks = await tasks_of(bgx)
        tasks.add_task(telemetry.see)
        tasks.using(retry=Retry(attempts=2, **AT_ONCE)).add_task(telemetry.see_and_fail)
        tasks.using(queue_timeout=0.001).add_task(telemetry.see)
        tasks.add_task(telemetry.see).cancel()
        await tasks()
    assert spans._trails == {}


# Worker processes.


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # a worker takes a second to start
async def test_the_span_is_current_in_a_worker_process_and_only_as_long_as_its_task(
    telemetry: Telemetry,
) -> None:
    bgx = telemetry.bgx(max_processes=1)
    token = otel.attach(baggage.set_baggage("tenant", "a"))
    tasks = await tasks_of(bgx)
    traced = tasks.using(executor="process").add_task(work.see_span)
    await tasks()
    otel.detach(token)
    plain = Bgx(Settings(max_processes=1))
    tasks = await tasks_of(plain)
    untraced = tasks.using(executor="process").add_task(work.see_span)
    await tasks()
    here = ids(telemetry.span())
    assert traced.outcome is not None
    assert traced.outcome.value == (here.trace_id, here.span_id, "a")
    assert untraced.outcome is not None
    assert untraced.outcome.value == (0, 0, None)


def test_a_trace_goes_on_where_its_carrier_is(telemetry: Telemetry) -> None:
    assert carrier_of(copy_context()) == {}
    with telemetry.request() as span:
        carrier = carrier_of(copy_context())
    with carried(carrier):
        assert trace.get_current_span().get_span_context().span_id == (
            span.get_span_context().span_id
        )
    assert not trace.get_current_span().get_span_context().is_valid
    with carried({}):
        assert not trace.get_current_span().get_span_context().is_valid


def test_a_propagator_that_fails_hurts_no_task(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("boom")

    monkeypatch.setattr(propagate, "inject", fail)
    monkeypatch.setattr(propagate, "extract", fail)
    with telemetry.request():
        assert carrier_of(copy_context()) == {}
    with carried({"traceparent": "?"}):
        assert not trace.get_current_span().get_span_context().is_valid


# Metrics.


async def test_what_ended_is_counted_by_name_and_status(telemetry: Telemetry) -> None:
    bgx = telemetry.bgx(max_backlog=4)
    tasks = await tasks_of(bgx)
    for _ in range(2):
        tasks.using(name="look").add_task(telemetry.see)
    tasks.using(name="fail").add_task(telemetry.see_and_fail)
    tasks.using(name="stop").add_task(telemetry.see).cancel()
    tasks.using(name="look").add_task(telemetry.see)
    with pytest.raises(Exception, match="are waiting already"):
        tasks.using(name="look").add_task(telemetry.see)
    await tasks()
    assert telemetry.values("bgx.tasks.ended") == {
        ("succeeded", "look"): 3,
        ("failed", "fail", "ValueError"): 1,
        ("cancelled", "stop"): 1,
        ("rejected", "look"): 1,
    }
    # What never ran has neither waited to its end nor lasted.
    assert telemetry.values("bgx.task.wait_time") == {("look",): 3, ("fail",): 1}
    assert telemetry.values("bgx.attempt.duration") == {
        ("succeeded", "look"): 3,
        ("failed", "fail", "ValueError"): 1,
    }


async def test_each_attempt_is_measured_and_each_retry_counted(telemetry: Telemetry) -> None:
    tasks = await tasks_of(telemetry.bgx())
    retry = Retry(attempts=3, **AT_ONCE)
    tasks.using(name="fail", retry=retry).add_task(telemetry.see_and_fail)
    await tasks()
    assert telemetry.values("bgx.tasks.retries") == {("fail",): 2}
    assert telemetry.values("bgx.task.wait_time") == {("fail",): 1}
    assert telemetry.values("bgx.attempt.duration") == {
        ("retrying", "fail", "ValueError"): 2,
        ("failed", "fail", "ValueError"): 1,
    }


async def test_a_task_that_ends_between_two_attempts_is_measured_once(
    telemetry: Telemetry,
) -> None:
    async with serving() as bgx:
        telemetry.instrument(bgx)
        tasks = await tasks_of(bgx)
        retry = Retry(attempts=2, wait_initial=60)
        task = tasks.using(detached=True, name="fail", retry=retry).add_task(telemetry.see_and_fail)
        await tasks()
        await until(lambda: task.status == "retrying")
        task.cancel()
    assert telemetry.values("bgx.tasks.ended") == {("cancelled", "fail"): 1}
    assert telemetry.values("bgx.attempt.duration") == {("retrying", "fail", "ValueError"): 1}
    assert len(telemetry.spans()) == 1


async def test_the_buckets_are_seconds(telemetry: Telemetry) -> None:
    tasks = await tasks_of(telemetry.bgx())
    tasks.add_task(telemetry.see)
    await tasks()
    for metric in ("bgx.task.wait_time", "bgx.attempt.duration"):
        (point,) = telemetry.points(metric)
        assert point.explicit_bounds == measures.BUCKETS


async def test_what_goes_on_is_read_when_it_is_collected(telemetry: Telemetry) -> None:
    gate = threading.Event()
    async with serving(limits={"smtp": 1}, max_threads=3) as bgx:
        telemetry.instrument(bgx)
        tasks = await tasks_of(bgx)
        for _ in range(2):
            tasks.using(detached=True, concurrent=True, limit="smtp").add_task(gate.wait)
        asleep = tasks.using(detached=True, concurrent=True).add_task(anyio.sleep_forever)
        await tasks()
        await until(lambda: asleep.status == "running")
        assert telemetry.values("bgx.tasks.running") == {
            ("thread",): 1,
            ("async",): 1,
            ("process",): 0,
        }
        assert telemetry.values("bgx.tasks.waiting") == {(): 1}
        assert telemetry.values("bgx.tasks.overrunning") == {(): 0}
        used = telemetry.values("bgx.slots.used")
        assert {name: used[(name,)] for name in ("smtp", "threads", "concurrency")} == {
            "smtp": 1,
            "threads": 1,
            "concurrency": 2,
        }
        slots = telemetry.values("bgx.slots.limit")
        assert (slots["smtp",], slots["threads",]) == (1, 3)
        gate.set()


async def test_a_limiter_without_a_limit_has_no_such_figure(telemetry: Telemetry) -> None:
    bgx = telemetry.bgx(max_concurrency=None)
    tasks = await tasks_of(bgx)
    tasks.add_task(telemetry.see_async)
    await tasks()
    assert ("concurrency",) in telemetry.values("bgx.slots.used")
    assert ("concurrency",) not in telemetry.values("bgx.slots.limit")


async def test_two_applications_of_one_process_are_added_up(telemetry: Telemetry) -> None:
    async with serving() as one, serving() as two:
        for bgx in (one, two):
            telemetry.instrument(bgx)
            tasks = await tasks_of(bgx)
            tasks.using(detached=True).add_task(anyio.sleep_forever)
            await tasks()
            await until(partial(runs, bgx))
        assert telemetry.values("bgx.tasks.running")[("async",)] == 2


async def test_too_many_names_are_counted_as_one(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "MOST_NAMES", 2)
    tasks = await tasks_of(telemetry.bgx())
    for name in ("a", "b", "c", "d", "a"):
        tasks.using(name=name).add_task(telemetry.see)
    await tasks()
    assert telemetry.values("bgx.tasks.ended") == {
        ("succeeded", "a"): 2,
        ("succeeded", "b"): 1,
        ("succeeded", "_OTHER"): 2,
    }


# `instrument`.


async def test_a_second_call_does_nothing(telemetry: Telemetry) -> None:
    bgx = telemetry.bgx()
    telemetry.instrument(bgx)
    tasks = await tasks_of(bgx)
    tasks.add_task(telemetry.see)
    await tasks()
    assert len(telemetry.spans()) == 1
    assert telemetry.values("bgx.tasks.ended") == {("succeeded", "Telemetry.see"): 1}


def test_an_application_that_has_not_started_measures_nothing(telemetry: Telemetry) -> None:
    bgx = telemetry.bgx()
    assert telemetry.values("bgx.tasks.waiting") == {}
    del bgx


def test_nothing_keeps_an_application_that_is_gone(telemetry: Telemetry) -> None:
    bgx = ref(telemetry.bgx())
    gc.collect()
    assert bgx() is None
    assert telemetry.values("bgx.tasks.waiting") == {}


def test_without_the_package_the_error_names_the_extra() -> None:
    script = """
import sys
import fastapi_bgx
for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
    del sys.modules[name]
sys.modules["opentelemetry"] = None
import fastapi_bgx.listeners.opentelemetry
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "pip install 'fastapi-bgx[opentelemetry]'" in result.stderr.splitlines()[-1]
