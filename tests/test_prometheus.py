"""Prometheus: what is counted, timed and read, by which labels, and what never happens to a task.

With several processes: tests/server/test_prometheus.py.
"""

import gc
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, HTTPException
from prometheus_client import CollectorRegistry, Counter, generate_latest
from structlog.testing import capture_logs

from fastapi_bgx import (
    BackgroundTasks,
    BacklogFull,
    Bgx,
    Limit,
    LimiterStats,
    Retry,
    Settings,
    Stats,
    Status,
    Tasks,
)
from fastapi_bgx.events import ALL_EVENTS
from fastapi_bgx.listeners.prometheus import BUCKETS, counters, gauges, instrument
from fastapi_bgx.listeners.prometheus.gauges import GaugeWriter, readings_of, remove_the_dead
from tests.asgi import call, running
from tests.supervision import serving, tasks_of, until

pytestmark = pytest.mark.anyio

DASHBOARD = Path(__file__).parent.parent / "docs" / "how-to" / "prometheus.json"
ENDS = [status for status in Status if status.final]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def instrumented(registry: CollectorRegistry, **settings: Any) -> Bgx:
    bgx = Bgx(Settings(log_events=set(), **settings))
    instrument(bgx, registry=registry)
    return bgx


async def quick() -> None: ...


async def fail() -> None:
    raise ValueError


def ended(registry: CollectorRegistry, task: str) -> dict[str, float | None]:
    """How many tasks of that name ended, by status; those of which there were none are left out."""
    labels = [{"task": task, "status": status.value} for status in ENDS]
    counts = {each["status"]: registry.get_sample_value("bgx_tasks_total", each) for each in labels}
    return {status: count for status, count in counts.items() if count != 0}


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def observed(registry: CollectorRegistry, name: str, task: str = "quick") -> tuple[Any, Any]:
    """How many values a histogram has seen, and their sum."""
    return (
        value(registry, f"{name}_count", task=task),
        value(registry, f"{name}_sum", task=task),
    )


# What is counted.


async def test_tasks_are_counted_by_name_and_status(registry: CollectorRegistry) -> None:
    bgx = instrumented(registry)
    tasks = await tasks_of(bgx)
    for func in (quick, quick, fail):
        tasks.add_task(func)
    tasks.using(name="crm").add_task(quick)
    await tasks()
    assert ended(registry, "quick") == {"succeeded": 2}
    assert ended(registry, "fail") == {"failed": 1}
    assert ended(registry, "crm") == {"succeeded": 1}


async def test_every_final_status_is_counted(registry: CollectorRegistry) -> None:
    bgx = instrumented(registry, max_backlog=6, limits={"one": 1})

    def add(tasks: BackgroundTasks) -> None:
        tasks = tasks.using(name="work")  # type: ignore[assignment]
        tasks.add_task(quick)
        tasks.add_task(fail)
        tasks.using(timeout=0.001).add_task(anyio.sleep, 10)
        view = tasks.using(detached=True, concurrent=True, limit="one")
        view.add_task(anyio.sleep, 10)
        view.add_task(quick)
        view.using(queue_timeout=0.001).add_task(quick)
        with pytest.raises(BacklogFull):
            tasks.add_task(quick)

    app = FastAPI()
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        add(tasks)

    @app.get("/failed")
    async def failed(tasks: Tasks) -> None:
        tasks.using(name="work").add_task(quick)
        raise HTTPException(500)

    async with running(app):
        await call(app)
        await until(lambda: bgx.stats().totals[Status.EXPIRED] == 1)
        await call(app, "/failed")
        await bgx.drain(grace=0)
    assert ended(registry, "work") == {
        "succeeded": 1,
        "failed": 1,
        "timed_out": 1,
        "cancelled": 2,
        "expired": 1,
        "rejected": 1,
        "dropped": 1,
    }
    assert observed(registry, "bgx_task_wait_seconds", "work")[0] == 4  # those that were called
    assert observed(registry, "bgx_task_duration_seconds", "work")[0] == 4


async def test_every_counter_of_a_name_is_there_once_it_is_heard_of(
    registry: CollectorRegistry,
) -> None:
    bgx = instrumented(registry)
    tasks = await tasks_of(bgx)
    tasks.add_task(quick)
    await tasks()
    for status in ENDS:
        count = value(registry, "bgx_tasks_total", task="quick", status=status.value)
        assert count == (status is Status.SUCCEEDED)
    assert value(registry, "bgx_task_retries_total", task="quick") == 0
    assert value(registry, "bgx_tasks_joined_total", task="quick") == 0


async def test_attempts_that_are_followed_by_another_are_retries(
    registry: CollectorRegistry,
) -> None:
    async with serving(log_events=set()) as bgx:
        instrument(bgx, registry=registry)
        tasks = await tasks_of(bgx)
        view = tasks.using(retry=Retry(attempts=3, wait_from_error=lambda _: 0.001))
        task = view.add_task(fail)
        await tasks()
        await task.wait()
    assert value(registry, "bgx_task_retries_total", task="fail") == 2
    assert ended(registry, "fail") == {"failed": 1}
    assert observed(registry, "bgx_task_duration_seconds", "fail")[0] == 1


async def test_a_task_that_is_given_for_another_one_is_joined(registry: CollectorRegistry) -> None:
    bgx = instrumented(registry)
    tasks = await tasks_of(bgx)
    for _ in range(3):
        tasks.using(unique="order-42").add_task(quick)
    await tasks()
    assert value(registry, "bgx_tasks_joined_total", task="quick") == 2
    assert ended(registry, "quick") == {"succeeded": 1}


async def test_a_name_is_known_by_its_first_refusal(registry: CollectorRegistry) -> None:
    bgx = instrumented(registry, max_backlog=1)
    tasks = await tasks_of(bgx)
    tasks.add_task(fail)
    with pytest.raises(BacklogFull):
        tasks.add_task(quick)
    assert ended(registry, "quick") == {"rejected": 1}


# What is timed.


async def test_the_wait_and_the_duration_are_those_of_the_outcome(
    registry: CollectorRegistry,
) -> None:
    bgx = instrumented(registry)
    tasks = await tasks_of(bgx)
    outcome = tasks.add_task(quick)
    await tasks()
    assert outcome.outcome is not None
    assert observed(registry, "bgx_task_wait_seconds") == (1, outcome.outcome.queued_s)
    assert observed(registry, "bgx_task_duration_seconds") == (1, outcome.outcome.duration_s)


async def test_a_delay_that_was_asked_for_is_no_wait(registry: CollectorRegistry) -> None:
    async with serving(log_events=set()) as bgx:
        instrument(bgx, registry=registry)
        tasks = await tasks_of(bgx)
        task = tasks.using(delay=0.05).add_task(quick)
        await tasks()
        await task.wait()
    assert task.outcome is not None
    count, waited = observed(registry, "bgx_task_wait_seconds")
    assert count == 1
    assert waited == pytest.approx(task.outcome.queued_s - 0.05, abs=1e-6)


async def test_buckets_of_one_s_own(registry: CollectorRegistry) -> None:
    bgx = Bgx(Settings(log_events=set()))
    instrument(bgx, registry=registry, buckets=(1, 3600))
    tasks = await tasks_of(bgx)
    tasks.add_task(quick)
    await tasks()
    for name in ("bgx_task_wait_seconds", "bgx_task_duration_seconds"):
        bounds = re.findall(rf'{name}_bucket{{le="([^"]+)"', generate_latest(registry).decode())
        assert bounds == ["1.0", "3600.0", "+Inf"]


# What is read.


async def test_gauges_tell_what_runs_and_waits_at_the_moment(registry: CollectorRegistry) -> None:
    gate, thread_gate = anyio.Event(), threading.Event()
    async with serving(log_events=set(), limits={"smtp": 2}, max_concurrency=10) as bgx:
        instrument(bgx, registry=registry)
        tasks = await tasks_of(bgx)
        view = tasks.using(detached=True, concurrent=True)
        for _ in range(5):
            view.using(limit="smtp").add_task(gate.wait)
        view.add_task(thread_gate.wait, 10)
        await tasks()
        await until(lambda: bgx.stats().waiting == 3)
        assert value(registry, "bgx_tasks_running", executor="async") == 2
        assert value(registry, "bgx_tasks_running", executor="thread") == 1
        assert value(registry, "bgx_tasks_running", executor="process") == 0
        assert value(registry, "bgx_tasks_waiting") == 3
        assert value(registry, "bgx_tasks_overrunning") == 0
        assert value(registry, "bgx_limiter_slots", limiter="smtp") == 2
        assert value(registry, "bgx_limiter_slots_taken", limiter="smtp") == 2
        assert value(registry, "bgx_limiter_tasks_waiting", limiter="smtp") == 3
        assert value(registry, "bgx_limiter_slots_taken", limiter="concurrency") == 3
        gate.set()
        thread_gate.set()
    assert value(registry, "bgx_tasks_waiting") == 0
    assert value(registry, "bgx_limiter_slots_taken", limiter="smtp") == 0


async def test_a_thread_that_outlived_its_timeout_overruns(registry: CollectorRegistry) -> None:
    bgx, gate = instrumented(registry), threading.Event()
    tasks = await tasks_of(bgx)
    tasks.using(timeout=0.001).add_task(gate.wait, 10)
    await tasks()
    assert value(registry, "bgx_tasks_overrunning") == 1
    gate.set()
    await until(lambda: value(registry, "bgx_tasks_overrunning") == 0)


async def test_a_limiter_without_a_limit_has_no_number_of_slots(
    registry: CollectorRegistry,
) -> None:
    bgx = instrumented(registry, max_concurrency=None)
    await tasks_of(bgx)
    assert value(registry, "bgx_limiter_slots_taken", limiter="concurrency") == 0
    assert value(registry, "bgx_limiter_slots", limiter="concurrency") is None


def test_before_the_first_request_there_is_nothing_to_read(registry: CollectorRegistry) -> None:
    instrumented(registry)
    assert value(registry, "bgx_tasks_waiting") is None
    assert b"# HELP bgx_tasks_waiting" in generate_latest(registry)


# Labels.


def stats_with(limiters: dict[str, LimiterStats]) -> Stats:
    return Stats(running=0, waiting=0, overrunning=0, limiters=limiters, executors={}, totals={})


async def test_after_many_names_the_rest_are_one(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "MOST_NAMES", 2)
    bgx = instrumented(registry)
    for name in ("one", "two", "three", "four", "one", "three"):
        tasks = await tasks_of(bgx)
        tasks.using(name=name).add_task(quick)
        await tasks()
    assert ended(registry, "one") == {"succeeded": 2}
    assert ended(registry, "two") == {"succeeded": 1}
    assert ended(registry, "other") == {"succeeded": 3}
    assert value(registry, "bgx_tasks_total", task="three", status="succeeded") is None


def test_after_many_limiters_the_rest_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "MOST_NAMES", 2)
    limiters = {
        name: LimiterStats(slots=slots, taken=1, waiting=0)
        for name, slots in {"a": 5, "b": None, "c": 3, "d": 4}.items()
    }
    found = readings_of([stats_with(limiters), stats_with(limiters)])
    taken = {labels: count for (gauge, labels), count in found.items() if gauge is gauges.TAKEN}
    slots = {labels: count for (gauge, labels), count in found.items() if gauge is gauges.SLOTS}
    assert taken == {("a",): 2, ("b",): 2, ("other",): 4}
    assert slots == {("a",): 10, ("other",): 14}


async def test_a_name_that_cannot_be_sent_does_not_end_the_scrape(
    registry: CollectorRegistry,
) -> None:
    async def named() -> None: ...

    bgx = instrumented(registry)
    for name in ("half \ud83d", 'with "quotes" and\nlines'):
        named.__qualname__ = name
        tasks = await tasks_of(bgx)
        tasks.using(limit=Limit(name, 1)).add_task(named)
        await tasks()
    text = generate_latest(registry).decode()
    assert 'bgx_tasks_total{status="succeeded",task="half ?"} 1.0' in text
    assert 'bgx_limiter_slots{limiter="half ?"} 1.0' in text
    assert r'task="with \"quotes\" and\nlines"' in text


async def test_neither_ids_nor_arguments_are_told(registry: CollectorRegistry) -> None:
    bgx = instrumented(registry)

    async def charge(card: str) -> None:
        raise ConnectionError(card)

    tasks = await tasks_of(bgx)
    task = tasks.using(unique="4242").add_task(charge, "4242")
    await tasks()
    text = generate_latest(registry).decode()
    assert 'task="charge"' in text
    assert "4242" not in text
    assert task.id not in text


# Registries, and more than one Bgx.


def test_the_registry_of_prometheus_client_is_the_default() -> None:
    script = """
from prometheus_client import REGISTRY
from fastapi_bgx import Bgx, Settings
from fastapi_bgx.listeners.prometheus import instrument
instrument(Bgx(Settings()))
print(*(metric.name for metric in REGISTRY.collect() if metric.name.startswith("bgx_")))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.split() == [
        "bgx_tasks",
        "bgx_task_retries",
        "bgx_tasks_joined",
        "bgx_task_wait_seconds",
        "bgx_task_duration_seconds",
        *(gauge.name for gauge in gauges.GAUGES),
    ], result.stderr


async def test_to_instrument_twice_counts_once(registry: CollectorRegistry) -> None:
    bgx = instrumented(registry)
    instrument(bgx, registry=registry)
    tasks = await tasks_of(bgx)
    tasks.add_task(quick)
    await tasks()
    assert ended(registry, "quick") == {"succeeded": 1}
    assert value(registry, "bgx_limiter_slots", limiter="threads") == 20


async def test_two_in_one_registry_are_added_up(registry: CollectorRegistry) -> None:
    both = [instrumented(registry), instrumented(registry)]
    for bgx in both * 2:
        tasks = await tasks_of(bgx)
        tasks.add_task(quick)
        await tasks()
    assert ended(registry, "quick") == {"succeeded": 4}
    assert value(registry, "bgx_limiter_slots", limiter="threads") == 40


async def test_two_registries_tell_two_apart() -> None:
    registries = CollectorRegistry(), CollectorRegistry()
    for registry, func in zip(registries, (quick, fail), strict=True):
        tasks = await tasks_of(instrumented(registry))
        tasks.add_task(func)
        await tasks()
    for registry, name in zip(registries, ("quick", "fail"), strict=True):
        text = generate_latest(registry).decode()
        assert set(re.findall(r'task="([^"]+)"', text)) == {name}


async def test_a_bgx_that_is_gone_is_not_read_and_not_kept(registry: CollectorRegistry) -> None:
    bgx = instrumented(registry)
    await tasks_of(bgx)
    assert value(registry, "bgx_tasks_waiting") == 0
    del bgx
    gc.collect()
    assert value(registry, "bgx_tasks_waiting") is None


def test_other_buckets_in_the_same_registry_are_refused(registry: CollectorRegistry) -> None:
    instrumented(registry)
    with pytest.raises(ValueError, match="the metrics of this registry have the buckets"):
        instrument(Bgx(Settings()), registry=registry, buckets=(1, 2))
    instrument(Bgx(Settings()), registry=registry, buckets=list(BUCKETS))


@pytest.mark.parametrize("name", ["bgx_tasks_total", "bgx_tasks_waiting"])
def test_metrics_of_others_with_these_names_are_refused(
    registry: CollectorRegistry, name: str
) -> None:
    Counter(name, "of the application", registry=registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        instrumented(registry)


# What it costs.


def test_nothing_is_heard_of_a_task_before_its_end(registry: CollectorRegistry) -> None:
    bgx = instrumented(registry)
    heard = {event.name for event in ALL_EVENTS if event in bgx.runners.publisher.heard}
    assert heard == {
        *(f"task.{status.value}" for status in ENDS),
        "task.joined",
        "task.retrying",
    }


def test_without_the_library_the_error_says_what_to_install() -> None:
    script = """
import sys
import fastapi_bgx
assert "prometheus_client" not in sys.modules
sys.modules["prometheus_client"] = None
from fastapi_bgx.listeners.prometheus import instrument
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == (
        "ImportError: metrics need prometheus-client: pip install 'fastapi-bgx[prometheus]'"
    )


def test_its_name_in_the_message_when_it_fails(registry: CollectorRegistry) -> None:
    bgx = instrumented(registry)
    (listener,) = bgx.runners.publisher.heard[ALL_EVENTS[6]]
    assert repr(listener) == "prometheus"


# The gauges of one process among several.


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (tmp_path / f"gauge_livesum_{os.getpid()}.db").touch()
    return tmp_path


def writer_of(registry: CollectorRegistry, snapshots: Callable[[], list[Stats]]) -> GaugeWriter:
    return GaugeWriter(lambda: readings_of(snapshots()), registry)


def test_what_is_not_read_any_more_is_written_as_zero(
    registry: CollectorRegistry, files: Path
) -> None:
    now = [stats_with({"smtp": LimiterStats(slots=3, taken=2, waiting=1)})]
    writer = writer_of(registry, lambda: now)
    writer.step()
    assert value(registry, "bgx_limiter_slots_taken", limiter="smtp") == 2
    assert value(registry, "bgx_tasks_waiting") == 0
    now.clear()
    writer.step()
    assert value(registry, "bgx_limiter_slots_taken", limiter="smtp") == 0
    assert value(registry, "bgx_limiter_slots", limiter="smtp") == 0


def test_a_failure_to_write_is_logged_once_and_again_after_a_success(
    registry: CollectorRegistry, files: Path
) -> None:
    broken = True

    def snapshots() -> list[Stats]:
        if broken:
            raise OSError("no space")
        return []

    writer = writer_of(registry, snapshots)
    with capture_logs() as lines:
        writer.step()
        writer.step()
        assert [line["event"] for line in lines] == ["bgx.listener_failed"]
        assert (lines[0]["listener"], lines[0]["about"]) == ("prometheus", "gauges")
        broken = False
        writer.step()
        broken = True
        writer.step()
    assert len(lines) == 2


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that was."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_live_gauges_of_the_dead_are_removed_and_nothing_else(files: Path, dead: int) -> None:
    mine, theirs = os.getpid(), os.getppid()
    gone = {f"gauge_livesum_{dead}.db", f"gauge_liveall_{dead}.db"}
    kept = {
        f"gauge_livesum_{mine}.db",
        f"gauge_livesum_{theirs}.db",
        "gauge_livesum_worker-one.db",
        f"gauge_sum_{dead}.db",
        f"counter_{dead}.db",
        f"histogram_{dead}.db",
    }
    for name in gone | kept:
        (files / name).touch()
    remove_the_dead(files)
    assert {path.name for path in files.iterdir()} == kept


def test_a_process_of_somebody_else_lives(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    path = files / "gauge_livesum_1.db"
    path.touch()
    monkeypatch.setattr(gauges, "os", SimpleNamespace(getpid=os.getpid, kill=refuse))
    remove_the_dead(files)
    assert path.exists()


def test_files_that_are_not_named_by_process_ids_are_left_alone(files: Path, dead: int) -> None:
    (files / f"gauge_livesum_{os.getpid()}.db").unlink()
    path = files / f"gauge_livesum_{dead}.db"
    path.touch()
    remove_the_dead(files)
    assert path.exists()


def test_where_nobody_can_ask_for_process_ids_nothing_is_removed(
    files: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "CAN_ASK_FOR_PIDS", False)
    path = files / f"gauge_livesum_{dead}.db"
    path.touch()
    remove_the_dead(files)
    assert path.exists()


# The dashboard for Grafana.


def strings(node: Any, key: str) -> list[str]:
    """Every string that a JSON document has under that key, anywhere."""
    if isinstance(node, list):
        return [found for each in node for found in strings(each, key)]
    if not isinstance(node, dict):
        return []
    here = [found for name, found in node.items() if name == key and isinstance(found, str)]
    return here + strings(list(node.values()), key)


async def test_every_metric_of_the_dashboard_exists_and_every_metric_is_in_it(
    registry: CollectorRegistry,
) -> None:
    bgx = instrumented(registry)
    tasks = await tasks_of(bgx)
    tasks.add_task(quick)
    await tasks()
    samples = {
        sample.name
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }
    dashboard = json.loads(DASHBOARD.read_text())
    asked = strings(dashboard, "expr") + strings(dashboard, "query")
    named = {name for text in asked for name in re.findall(r"\bbgx_\w+", text)}
    assert named <= samples
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in samples}
    assert families == {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}


def test_the_panels_of_the_dashboard_have_ids_and_places_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
