"""The recorder: what a record says, when it is there, and what a bad store cannot do to anybody."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio
import pytest
from fastapi import FastAPI

from fastapi_bgx import Bgx, Retry, Settings, SettingsError, Status, Task, current_task
from fastapi_bgx.errors import BacklogFull, StoreUnavailable
from fastapi_bgx.events import TaskBlockedLoop, TaskLogged, TaskOverran, TaskSlow
from fastapi_bgx.listeners import recorder as module
from fastapi_bgx.listeners.recorder import Recorder, buffer, outage, redaction, rejections, writer
from fastapi_bgx.listeners.recorder.building import definition_of, function_name
from fastapi_bgx.listeners.recorder.moments import MOST_ANCHORS, Moments
from fastapi_bgx.records import MOST_STEPS, Command, FullRecord, ProcessReading, Query
from fastapi_bgx.stores import MemoryStore, open_store
from tests import work
from tests.asgi import client_of
from tests.logs import Lines, logged, named, one
from tests.supervision import PATIENCE, serving, tasks_of, until

pytestmark = pytest.mark.anyio
RETRY = Retry(attempts=2)


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as lines:
        yield lines


@asynccontextmanager
async def recording(store: Any = None, **settings: Any) -> AsyncIterator[tuple[Bgx, Recorder]]:
    """A serving `Bgx` that records into a store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastapi_bgx.recording.open_store", lambda _: store or MemoryStore())
        async with serving(log_events=set(), store="memory", **settings) as bgx:
            yield bgx, bgx.recorder


async def quick(value: Any = None) -> Any:
    return value


async def fail(message: str = "boom") -> None:
    raise ValueError(message)


async def run(bgx: Bgx, func: Any, *args: Any, **options: Any) -> Task[Any]:
    tasks = await tasks_of(bgx)
    task: Task[Any] = tasks.using(**options).add_task(func, *args)
    await tasks()
    return task


def kept(recorder: Recorder, task: Task[Any]) -> FullRecord:
    assert recorder.flush(PATIENCE)
    record = recorder.store.get(task.id)
    assert record is not None
    return record


# What a record says.


async def test_what_is_refused_has_a_record_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejections, "MOST_AT_ONCE", 2)
    async with recording(max_backlog=1) as (bgx, recorder):
        tasks = await tasks_of(bgx)
        kept_task = tasks.add_task(quick)
        for _ in range(3):
            with pytest.raises(BacklogFull):
                tasks.using(name="mail").add_task(quick)
        await tasks()
        assert kept(recorder, kept_task).status is Status.SUCCEEDED
        refused = recorder.store.find(Query(status=frozenset({Status.REJECTED}))).records
        assert [record.name for record in refused] == ["mail", "mail"]
        assert {record.reason for record in refused} == {"the backlog is full"}
        assert all(record.ended_at == record.added_at for record in refused)
        assert len({record.id for record in refused}) == 2
        assert recorder.lost == 1
        assert repr(recorder.rejections) == "recorder of refusals"
        answer = await bgx.records.cancel(refused[0].id)
        assert answer is not None
        assert not answer.done


def hang(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_process_that_hung_did_so_in_its_function() -> None:
    async with recording() as (bgx, recorder):
        task = await run(bgx, partial(hang, 60), executor="process", timeout=0.1)
        place = kept(recorder, task).error_place
        assert place.startswith("tests/test_recorder.py:")
        assert place.endswith(" in hang")


def test_what_is_not_written_in_python_is_defined_nowhere() -> None:
    assert definition_of(len) is None
    assert definition_of(partial(hang, 1)) == definition_of(hang)


async def test_a_record_says_how_a_task_ran() -> None:
    async with recording(limits={"smtp": 1}) as (bgx, recorder):
        before = datetime.now(UTC)
        task = await run(bgx, quick, {"a": 1}, limit="smtp", timeout=5, priority=3, name="mail")
        record = kept(recorder, task)
        assert (record.id, record.name, record.status) == (task.id, "mail", Status.SUCCEEDED)
        assert record.function == "tests.test_recorder.quick"
        assert record.process == recorder.process == task.id.partition("-")[0]
        assert (record.limit, record.timeout_s, record.priority) == ("smtp", 5, 3)
        assert (record.attempt, record.attempts, record.executor) == (1, 1, "async")
        assert record.value == '{"a": 1}'
        assert record.arguments is None
        assert record.queued_s == task.queued_s
        assert record.duration_s == task.duration_s
        assert record.ended_at is not None
        slack = timedelta(seconds=1)
        assert before - slack < record.added_at <= record.ended_at < before + 2 * slack
        assert [step.kind for step in record.steps] == ["started"]
        assert record.retry_of is None
        assert not record.retryable


async def test_a_record_tells_of_every_attempt_and_its_error() -> None:
    async with recording(retry=RETRY) as (bgx, recorder):
        task = await run(bgx, fail, detached=True)
        await until(lambda: task.status == "retrying")
        waiting = kept(recorder, task)
        assert waiting.status is Status.RETRYING
        assert waiting.due_at is not None
        assert waiting.due_at > waiting.added_at
        assert waiting.error_message == "boom"
        await task.wait()
        record = kept(recorder, task)
        kinds = [(step.kind, step.attempt) for step in record.steps]
        assert kinds == [
            ("started", 1),
            ("failed", 1),
            ("retrying", 1),
            ("started", 2),
            ("failed", 2),
        ]
        assert [step.text for step in record.steps if step.kind == "failed"] == [
            "ValueError: boom"
        ] * 2
        assert (record.error_type, record.error_message) == ("ValueError", "boom")
        assert record.error_place.startswith("tests/test_recorder.py:")
        assert record.fingerprint
        assert record.traceback.endswith("ValueError: boom")
        assert (record.attempts, record.due_at) == (2, None)


async def test_a_task_that_has_not_ended_has_a_record(anyio_backend: str) -> None:
    gate = anyio.Event()
    async with recording() as (bgx, recorder):
        tasks = await tasks_of(bgx)
        using = tasks.using(detached=True)
        first = using.add_task(gate.wait)
        late = tasks.using(detached=True, delay=60, concurrent=True).add_task(quick)
        assert kept(recorder, first).status is Status.QUEUED
        await tasks()
        await until(lambda: first.status == "running")
        record = kept(recorder, first)
        assert record.status is Status.RUNNING
        assert record.detached
        assert (record.ended_at, record.duration_s) == (None, None)
        assert record.queued_s is not None
        delayed = kept(recorder, late)
        assert [step.kind for step in delayed.steps] == ["delayed"]
        assert delayed.due_at is not None
        assert delayed.queued_s is None
        gate.set()
        await first.wait()
        assert kept(recorder, first).status is Status.SUCCEEDED
        assert late.cancel()
        await late.wait()
        cancelled = kept(recorder, late)
        assert (cancelled.status, cancelled.reason) == ("cancelled", "cancel() was called")
        assert cancelled.started_at is None
        assert cancelled.duration_s is None


async def test_a_thread_that_runs_on_is_said_to_overrun() -> None:
    gate = threading.Event()
    async with recording() as (bgx, recorder):
        task = await run(bgx, partial(gate.wait, 10), timeout=0.01)
        record = kept(recorder, task)
        assert record.status is Status.TIMED_OUT
        assert record.overrunning
        assert "in wait" in record.error_place
        gate.set()
        await until(lambda: not kept(recorder, task).overrunning)
        assert kept(recorder, task).steps[-1].kind in ("overran", "failed")


async def test_what_only_events_tell_are_steps() -> None:
    async with recording() as (bgx, recorder):
        task = await run(bgx, quick)
        bgx.runners.publish(TaskSlow(task, 31.0))
        bgx.runners.publish(TaskBlockedLoop(task, 2.0, "File x", ended=False))
        bgx.runners.publish(TaskBlockedLoop(task, 3.0, "File x", ended=True))
        bgx.runners.publish(TaskOverran(task, 4.0, ended=False))
        steps = kept(recorder, task).steps
        assert [step.text for step in steps if step.seconds is not None] == [
            "it has been running for 31 s",
            "it keeps the event loop busy for 2 s, here:\nFile x",
            "it kept the event loop busy for 3 s, here:\nFile x",
            "its function still runs, 4 s after it should have",
        ]


async def test_of_many_steps_the_first_and_the_newest_are_kept() -> None:
    async with recording() as (bgx, recorder):
        task = await run(bgx, quick)
        for number in range(1000):
            bgx.runners.publish(TaskLogged(task, "info", str(number)))
        record = kept(recorder, task)
        texts = [step.text for step in record.steps if step.kind == "log"]
        assert texts[0] == "0"
        assert texts[-1] == "999"
        assert len(record.steps) <= MOST_STEPS
        assert record.steps_left_out == 1000 - len(texts)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # a worker takes a second to start
async def test_progress_is_in_the_record_of_a_worker_process_too() -> None:
    async with recording() as (bgx, recorder):
        task = await run(bgx, work.tell, (0.5, "half"), executor="process")
        record = kept(recorder, task)
        assert (record.progress, record.note, record.executor) == (0.5, "half", "process")
        here = await run(bgx, work.tell, (0.25, "a\x00b"))
        assert kept(recorder, here).note == "a\ufffdb"


async def test_arguments_are_kept_only_when_asked_for_though_the_task_lets_go_of_them() -> None:
    def call(first: int, *rest: int, key: str = "k", **more: Any) -> None: ...

    async with recording(store_arguments=True) as (bgx, recorder):
        task = await run(bgx, call, 1, 2, 3)
        assert kept(recorder, task).arguments == {"first": "1", "rest": "[2, 3]", "key": '"k"'}
        failed = await run(bgx, fail, "x")
        assert kept(recorder, failed).arguments == {"message": '"x"'}
        assert failed.args == ()
        recorder.mark(failed)
        assert kept(recorder, failed).arguments == {"message": '"x"'}
        many = {f"x{number}": number for number in range(200)}
        tasks = await tasks_of(bgx)
        crowded: Task[Any] = tasks.add_task(partial(call), 1, **many)
        assert len(kept(recorder, crowded).arguments or ()) == 101
        bare = tasks.add_task(dict, (), a=1)
        assert "a" in (kept(recorder, bare).arguments or {})
        await tasks()


async def test_a_call_that_fits_no_signature_is_shown_as_it_is() -> None:
    async with recording(store_arguments=True, check_calls=False) as (bgx, recorder):
        task = await run(bgx, quick, 1, 2, 3)
        assert kept(recorder, task).arguments == {"args": "[1, 2, 3]"}
        tasks = await tasks_of(bgx)
        named_only = tasks.add_task(quick, wrong=1)  # type: ignore[call-overload]
        await tasks()
        assert kept(recorder, named_only).arguments == {"wrong": "1"}


async def test_a_task_from_before_the_recording_is_recorded_with_what_it_still_has() -> None:
    gate = anyio.Event()
    async with serving(log_events=set(), store_arguments=True) as bgx:
        tasks = await tasks_of(bgx)

        async def wait(what: str) -> None:
            await gate.wait()

        task = tasks.using(detached=True).add_task(wait, "x")
        await tasks()
        assert bgx.recorder is bgx.recorder
        record = kept(bgx.recorder, task)
        assert record.arguments == {"what": '"x"'}
        ended = await run(bgx, quick)
        ended.trail = None
        assert bgx.recorder.record_of(ended).arguments is None
        gate.set()
        await task.wait()


async def test_what_is_retryable_is_what_somebody_holds() -> None:
    async with recording() as (bgx, recorder):
        task = await run(bgx, fail)
        held = {task.id}
        recorder.is_held = held.__contains__
        assert recorder.is_held(task.id)
        task.retry_of = "other"
        recorder.mark(task)
        record = kept(recorder, task)
        assert record.retryable
        assert record.retry_of == "other"


async def test_a_task_that_is_just_ending_has_not_ended_yet() -> None:
    async with recording() as (bgx, recorder):
        task = await run(bgx, quick)
        task.ended_at = None
        assert recorder.record_of(task).status is Status.RUNNING
        task.attempt = 0
        assert recorder.record_of(task).status is Status.QUEUED


def test_a_function_is_named_with_its_module() -> None:
    class Callable_:
        def __call__(self) -> None: ...

    assert function_name(partial(partial(quick), 1)) == "tests.test_recorder.quick"
    assert function_name(Callable_()).endswith("Callable_")


# Redaction.


async def test_a_hook_decides_what_is_kept() -> None:
    async with recording(store_arguments=True) as (bgx, recorder):
        seen: list[str] = []

        @bgx.redact
        def hide(task: Task[Any], name: str, value: object) -> object:
            seen.append(name)
            return {"hidden": name} if name in ("return", "log") else "***"

        def work(card: str) -> str:
            here = current_task()
            assert here is not None
            here.log.info("card", card=card)
            here.progress(0.5, note=f"charging {card}")
            return card

        with logged():
            task = await run(bgx, work, "4111")
        failed = await run(bgx, fail, "4111")
        record = kept(recorder, task)
        assert record.arguments == {"card": '"***"'}
        assert record.value == '{"hidden": "return"}'
        assert '{"hidden": "log"}' in [step.text for step in record.steps]
        assert record.note == "***"
        assert "4111" not in kept(recorder, failed).model_dump_json()
        assert {"card", "return", "log", "error"} <= set(seen)


async def test_where_a_hook_fails_nothing_is_kept_and_one_line_says_so(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recording(store_arguments=True) as (bgx, recorder):

        @bgx.redact
        def refuse(task: Task[Any], name: str, value: object) -> object:
            raise SystemExit

        task = await run(bgx, quick, 1)
        record = kept(recorder, task)
        assert record.value == f'"{redaction.FAILED}"'
        assert record.arguments == {"value": f'"{redaction.FAILED}"'}
        assert one(lines, "bgx.redact_failed")["task_id"] == task.id
        monkeypatch.setattr(redaction, "NOTICE_SECONDS", 0)
        recorder.mark(task)
        kept(recorder, task)
        assert len(named(lines, "bgx.redact_failed")) > 1


# The store is slow, gone, or hangs.


class Bad(MemoryStore):
    """A store that can be told to raise, or to hang."""

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__()
        self.shared = shared
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.poison = ""
        self.closed = 0
        self.asked: list[Command] = []
        self.buried: list[datetime] = []
        self.pruned: list[tuple[datetime, int]] = []
        self.batches: list[int] = []
        self.said: list[str] = []

    def open(self) -> None:
        self._check()

    def _check(self) -> None:
        self.gate.wait()
        if self.error is not None:
            raise self.error

    def write(self, records: Sequence[FullRecord]) -> None:
        self._check()
        self.said.append("write")
        self.batches.append(len(records))
        if any(record.name == self.poison for record in records):
            raise RuntimeError("a secret")
        super().write(records)

    def close(self) -> None:
        self._check()
        self.closed += 1

    def beat(self, process: ProcessReading) -> None:
        self.said.append("beat")
        super().beat(process)

    def prune(self, before: datetime, most: int) -> int:
        self.pruned.append((before, most))
        return super().prune(before, most)

    def bury(self, unseen_since: datetime) -> int:
        self.buried.append(unseen_since)
        return 0

    def asked_of(self, process: str) -> tuple[Command, ...]:
        asked, self.asked = self.asked, []
        return tuple(asked)


@pytest.fixture
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(writer, "LAST_BACKOFF", 0.05)


@pytest.mark.usefixtures("_quick_backoff")
async def test_what_a_dead_store_could_not_take_is_written_when_it_is_back(lines: Lines) -> None:
    store = Bad()
    store.error = StoreUnavailable("connection refused")
    async with recording(store) as (bgx, recorder):
        task = await run(bgx, quick)
        assert not recorder.flush(PATIENCE)  # at once: it is known to be down
        await until(lambda: named(lines, "bgx.store_unavailable"))
        line = one(lines, "bgx.store_unavailable")
        assert (line["reason"], line["lost"]) == ("connection refused", 0)
        assert not recorder._buffer._in_flight, "what was not written may be let go"
        store.error = None
        await until(lambda: store.get(task.id))
        await until(lambda: named(lines, "bgx.store_back"))
        assert recorder.lost == 0
        assert len(named(lines, "bgx.store_unavailable")) == 1


@pytest.mark.usefixtures("_quick_backoff")
async def test_while_it_lasts_a_dead_store_is_told_of_now_and_then(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "NOTICE_SECONDS", 0.02)
    store = Bad()
    store.error = RuntimeError("a secret")
    async with recording(store) as (bgx, _):
        await run(bgx, quick)
        await until(lambda: len(named(lines, "bgx.store_unavailable")) > 1)
        assert {line["reason"] for line in named(lines, "bgx.store_unavailable")} == {
            "RuntimeError"
        }
        store.error = None


async def test_a_store_that_hangs_holds_no_task_and_no_value_in_memory(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Value:
        pass

    store = Bad()
    async with recording(store, history=0) as (bgx, recorder):
        await run(bgx, quick)
        assert recorder.flush(PATIENCE)
        store.gate.clear()
        values: list[weakref.ref[Any]] = []

        async def make() -> Any:
            value = Value()
            values.append(weakref.ref(value))
            return value

        task: Any = await run(bgx, make)
        tasks = [weakref.ref(task)]
        del task
        assert not recorder.flush(0.5)

        def gone() -> bool:
            gc.collect()
            return values[0]() is None and tasks[0]() is None

        await until(gone)
        monkeypatch.setattr(outage, "STUCK_SECONDS", 0.0)
        await run(bgx, quick)
        await until(lambda: named(lines, "bgx.store_unavailable"))
        assert "did not answer" in one(lines, "bgx.store_unavailable")["reason"]
        store.gate.set()
        await until(lambda: named(lines, "bgx.store_back"))
        assert recorder.flush(PATIENCE)


async def test_a_task_that_has_ended_is_told_of_wherever_its_record_is_on_the_way_to_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Bad()
    async with recording(store, history=0) as (bgx, recorder):
        described, roomy = threading.Event(), threading.Event()
        wait_for_room = buffer.Buffer.wait_for_room

        def full(self: buffer.Buffer, timeout: float) -> bool:
            described.set()
            roomy.wait(PATIENCE)
            return wait_for_room(self, timeout)

        def told() -> str:
            record = recorder.unwritten(task.id)
            return "" if record is None else record.status

        monkeypatch.setattr(buffer.Buffer, "wait_for_room", full)
        store.gate.clear()
        task = await run(bgx, quick)
        assert told() == "succeeded", "not even looked at"
        await until(described.is_set)
        assert not recorder._changed
        assert told() == "succeeded", "described, with no room for it yet"
        roomy.set()
        await until(lambda: len(recorder._buffer))
        await until(lambda: not recorder._in_hand)
        assert told() == "succeeded", "on its way to a store that hangs"
        store.gate.set()
        assert recorder.flush(PATIENCE)
        assert told() == "", "the store has it"
        for unknown in ("other-1", f"{recorder.process}-99", "nonsense"):
            assert recorder.unwritten(unknown) is None


async def test_a_task_is_told_of_while_it_is_described() -> None:
    async with recording(history=0) as (bgx, recorder):
        begun, ready = threading.Event(), threading.Event()

        @bgx.redact
        def slow(task: Task[Any], name: str, value: Any) -> Any:
            if not begun.is_set():
                begun.set()
                ready.wait(PATIENCE)
            return value

        task = await run(bgx, quick, "value")
        await until(begun.is_set)
        record = recorder.unwritten(task.id)
        assert record is not None
        assert (record.id, record.status) == (task.id, "succeeded")
        ready.set()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # many tasks, and the same code
async def test_100_000_tasks_with_a_dead_store_cost_bounded_memory_and_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_CHANGED", 2_000)
    monkeypatch.setattr(buffer, "MOST_RECORDS", 1_000)
    store = Bad()
    store.error = StoreUnavailable("gone")
    async with recording(store, max_backlog=None) as (bgx, recorder):
        tasks = await tasks_of(bgx)
        for _ in range(100_000):
            tasks.add_task(quick)
        await tasks()
        assert len(recorder._changed) <= 2_000
        recorder.flush(PATIENCE)
        assert len(recorder._buffer) <= 1_000
        assert recorder.lost + len(recorder._buffer) == 100_000
        store.error = None
        assert recorder.leave(PATIENCE)
        assert len(store._all()) + recorder.lost == 100_000


async def test_what_goes_on_is_recorded_after_it_had_to_be_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_CHANGED", 10)
    gate = anyio.Event()
    async with recording(store_arguments=True) as (bgx, recorder):
        tasks = await tasks_of(bgx)
        using = tasks.using(detached=True, concurrent=True)
        added = [using.add_task(gate.wait) for _ in range(5)]
        await tasks()
        recorder._start_threads = lambda: None  # type: ignore[method-assign]
        for _ in range(20):
            await run(bgx, quick)
        del recorder._start_threads
        assert recorder.flush(PATIENCE)
        await until(lambda: all(recorder.store.get(task.id) for task in added))
        assert recorder.lost
        gate.set()


async def test_what_is_lost_while_the_store_answers_is_told_once_in_a_while(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_CHANGED", 10)
    async with recording() as (bgx, recorder):
        recorder._start_threads = lambda: None  # type: ignore[method-assign]
        for _ in range(20):
            await run(bgx, quick)
        del recorder._start_threads
        for _ in range(3):
            assert recorder.flush(PATIENCE)
            await run(bgx, quick)
        lost = recorder.lost
        assert lost > 0
        assert one(lines, "bgx.records_lost")["lost"] == lost


@pytest.mark.usefixtures("_quick_backoff")
async def test_what_a_shutdown_leaves_behind_without_its_store_is_told_once(lines: Lines) -> None:
    store = Bad()
    store.error = StoreUnavailable("gone")
    async with recording(store) as (bgx, recorder):
        for _ in range(3):
            await run(bgx, quick)
        assert not recorder.leave(PATIENCE / 10)
        assert one(lines, "bgx.records_lost")["lost"] == 3
        assert not recorder.leave(PATIENCE / 10)
        assert one(lines, "bgx.records_lost")
        store.error = None


@pytest.mark.usefixtures("_quick_backoff")
async def test_a_record_that_the_store_cannot_take_keeps_no_other_from_it() -> None:
    store = Bad()
    store.poison = "bad"
    async with recording(store) as (bgx, recorder):
        tasks = await tasks_of(bgx)
        good = [tasks.add_task(quick) for _ in range(5)]
        tasks.using(name="bad").add_task(quick)
        good += [tasks.add_task(quick) for _ in range(5)]
        await tasks()
        await until(lambda: all(store.get(task.id) for task in good))
        await until(lambda: recorder.lost == 1)
        assert recorder.flush(PATIENCE)


async def test_a_record_that_cannot_be_made_is_lost_alone(lines: Lines) -> None:
    async with recording() as (bgx, recorder):
        broken = await run(bgx, quick)
        assert recorder.flush(PATIENCE)
        build = recorder._builder.build

        def refuse(task: Task[Any]) -> FullRecord:
            if task is broken:
                raise ValueError("a bug")
            return build(task)

        recorder._builder.build = refuse  # type: ignore[method-assign]
        recorder.mark(broken)
        assert kept(recorder, await run(bgx, quick))
        assert recorder.lost == 1
        assert one(lines, "bgx.record_failed")["task_id"] == broken.id


async def two_records() -> tuple[FullRecord, FullRecord]:
    """Of a task that has ended, and of the same one before."""
    async with recording() as (bgx, recorder):
        ended = kept(recorder, await run(bgx, quick))
    return ended, ended.model_copy(update={"status": Status.RUNNING, "ended_at": None})


async def test_the_buffer_keeps_the_newest_of_each_task_and_lets_the_least_wanted_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buffer, "MOST_RECORDS", 10)
    ended, going = await two_records()
    some = buffer.Buffer()

    def put(name: str, record: FullRecord, **values: Any) -> None:
        some.put([record.model_copy(update={"id": name, **values})])

    put("a", going)
    batch = some.take(5)
    put("a", ended)
    some.written(batch)
    assert [record.final for _, record in some.take(5)] == [True]  # it has changed meanwhile
    for number in range(5):
        put(f"g{number}", going)
    for number in range(9):
        put(f"e{number}", ended)
    assert some.let_go_unfinished
    left = [record.id for _, record in some.take(20)]
    assert left[0] == "a"  # the store is about to take it
    assert some.lost > 0
    assert len(left) <= 10
    monkeypatch.setattr(buffer, "MOST_CHARACTERS", 100)
    some.written(some.take(20))
    put("long", ended, traceback="x" * 80)
    put("longer", ended, value="x" * 80)
    assert [record.id for _, record in some.take(5)] == ["longer"]
    some.take(5)
    put("huge", ended, value="x" * 200)
    assert {record.id for _, record in some.take(5)} == {"longer"}
    some.not_written()  # and now it may go, as the oldest
    put("newest", ended, value="x" * 80)
    assert {record.id for _, record in some.take(5)} == {"newest"}


async def test_of_a_task_that_goes_on_in_the_store_the_end_is_let_go_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buffer, "MOST_RECORDS", 10)
    ended, going = await two_records()
    some = buffer.Buffer()
    some.put([going.model_copy(update={"id": "known"})])
    some.written(some.take(5))
    some.put([ended.model_copy(update={"id": "known"})])
    for number in range(30):
        some.put([ended.model_copy(update={"id": f"new{number}"})])
    left = some.take(20)
    assert left[0][1].id == "known"
    assert some.lost
    some.written(left)
    some.put([ended.model_copy(update={"id": "known"})])  # its end is told: it is one of many now
    for number in range(30):
        some.put([ended.model_copy(update={"id": f"newer{number}"})])
    assert "known" not in {record.id for _, record in some.take(20)}


# The threads.


async def test_any_number_of_threads_may_tell_at_once() -> None:
    async with recording() as (bgx, recorder):
        tasks = await tasks_of(bgx)
        added = [tasks.add_task(quick) for _ in range(200)]
        await tasks()

        def tell() -> None:
            for task in added:
                bgx.runners.publish(TaskLogged(task, "info", "line"))

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(anyio.to_thread.run_sync, tell)
        assert recorder.flush(PATIENCE)
        for task in added:
            steps = kept(recorder, task).steps
            assert [step.kind for step in steps].count("log") == 8


async def test_where_no_thread_can_be_started_tasks_run_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    bgx = Bgx(Settings(log_events=set(), store="memory"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        task = await run(bgx, quick)
        assert task.status == "succeeded"
        assert not bgx.recorder.flush(0.01)
        assert not bgx.recorder.leave(0.01)
    assert kept(bgx.recorder, task)
    assert bgx.recorder.leave(PATIENCE)


async def test_a_drain_writes_everything_and_leaves_and_what_comes_later_is_written_too() -> None:
    store = Bad()
    async with recording(store) as (bgx, recorder):
        await until(store.processes)
        task = await run(bgx, quick)
        await bgx.drain()
        assert store.get(task.id)
        assert store.processes() == ()
        assert store.closed == 1
        names = {thread.name for thread in threading.enumerate() if thread.is_alive()}
        assert recorder._thread is None
        assert names
        recorder.mark(task)
        assert recorder.flush(PATIENCE)
        recorder.start()
        recorder.start()
        assert recorder.leave(PATIENCE)


async def test_a_drain_does_not_wait_for_a_store_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastapi_bgx.recording.FLUSH_SECONDS", 0.05)
    store = Bad()
    async with recording(store) as (bgx, _):
        store.gate.clear()
        await run(bgx, quick)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await anyio.sleep(0.001)
                ticks += 1

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            with anyio.fail_after(PATIENCE):
                await bgx.drain()
            group.cancel_scope.cancel()
        assert ticks > 3
        store.gate.set()


async def test_a_store_that_fails_when_a_process_leaves_is_told_of(lines: Lines) -> None:
    store = Bad()
    async with recording(store) as (bgx, recorder):
        kept(recorder, await run(bgx, quick))
        store.error = StoreUnavailable("gone")
        recorder.leave(PATIENCE)
        one(lines, "bgx.store_unavailable")
        store.error = None


@pytest.mark.usefixtures("_quick_backoff")
async def test_a_store_that_was_never_reached_is_not_told_who_leaves(lines: Lines) -> None:
    store = Bad(shared=True)
    store.error = StoreUnavailable("away")
    async with recording(store) as (bgx, recorder):
        await run(bgx, quick)
        await until(partial(named, lines, "bgx.store_unavailable"))
        thread = recorder._writer._thread
        recorder._writer.start()
        assert recorder._writer._thread is thread, "one that runs is enough"
    assert store.closed == 0


async def test_house_is_kept(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    for name in ("BEAT_SECONDS", "COMMANDS_SECONDS", "BURY_SECONDS", "PRUNE_SECONDS"):
        monkeypatch.setattr(writer, name, 0.01)
    store = Bad(shared=True)
    command = Command(id="1", process="p", task_id="t", action="cancel")
    async with recording(store, store_most=3, store_max_age=60) as (_, recorder):
        recorder.on_commands = None
        store.asked.append(command)
        looked = len(store.buried)
        await until(lambda: len(store.buried) > looked + 2)
        assert store.asked == [command]  # nobody is there to answer
        told: list[Command] = []
        recorder.on_commands = told.extend
        assert recorder.on_commands == told.extend
        await until(lambda: told == [command])

        def raising(commands: Any) -> None:
            raise error

        for error in (ValueError("bad"), StoreUnavailable("gone")):
            recorder.on_commands = raising
            store.asked.append(command)
            event = "command_failed" if isinstance(error, ValueError) else "store_unavailable"
            await until(partial(named, lines, f"bgx.{event}"))
        assert (datetime.now(UTC) - store.pruned[-1][0]).total_seconds() > 59
        assert store.pruned[-1][1] == 3
        (reading,) = store.processes()
        assert (reading.id, reading.pid) == (recorder.process, os.getpid())
        assert reading.limiters["concurrency"].slots == 1000
        assert (datetime.now(UTC) - store.buried[-1]).total_seconds() > 29


def test_before_its_first_request_other_processes_know_of_a_process(
    monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    store = Bad(shared=True)
    monkeypatch.setattr("fastapi_bgx.recording.open_store", lambda _: store)
    bgx, app = Bgx(Settings(log_events=set(), store="memory")), FastAPI()
    bgx.install(app)
    with client_of(app, anyio_backend):
        assert [process.id for process in store.processes()] == [bgx.recorder.process]
    assert not store.processes()


async def test_a_start_does_not_wait_long_for_a_store_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastapi_bgx.recording.HEARD_SECONDS", 0.01)
    store = Bad(shared=True)
    store.gate.clear()
    monkeypatch.setattr("fastapi_bgx.recording.open_store", lambda _: store)
    bgx = Bgx(Settings(log_events=set(), store="memory"))
    async with bgx.lifespan(FastAPI()):
        assert (await run(bgx, quick)).status == "succeeded"
        assert not bgx.recorder.wait_until_heard_of(0.0)
        store.gate.set()
        await until(lambda: bgx.recorder.wait_until_heard_of(0.0))


@pytest.mark.usefixtures("_quick_backoff")
async def test_after_an_outage_a_process_says_that_it_lives_before_it_writes(
    monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    monkeypatch.setattr(writer, "BEAT_SECONDS", 0.01)
    store = Bad(shared=True)
    store.error = StoreUnavailable("away")
    async with recording(store) as (bgx, _):
        await run(bgx, quick)
        await until(partial(named, lines, "bgx.store_unavailable"))
        store.error = None
        await until(lambda: "write" in store.said)
    assert store.said[0] == "beat"


@pytest.mark.usefixtures("_quick_backoff")
async def test_after_an_outage_no_other_process_is_buried_at_once(
    monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    monkeypatch.setattr(writer, "BURY_SECONDS", 0.01)
    store = Bad(shared=True)
    silent = datetime.now(UTC) - timedelta(hours=1)
    store.beat(ProcessReading(id="other", host="h", pid=1, started_at=silent, seen_at=silent))
    async with recording(store) as (bgx, _):
        await until(lambda: len(store.buried) > 2)
        store.error = StoreUnavailable("away")
        await run(bgx, quick)
        await until(partial(named, lines, "bgx.store_unavailable"))
        store.error = None
        await until(partial(named, lines, "bgx.store_back"))
        before = len(store.buried)
        await until(lambda: len(store.buried) > before)
        assert set(store.buried) == {silent}  # it is not before itself


async def test_many_ended_tasks_are_pruned_before_the_minute_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "MOST_BATCH", 5)
    store = Bad()
    async with recording(store, store_most=10) as (bgx, recorder):
        for _ in range(30):
            await run(bgx, quick)
        assert recorder.flush(PATIENCE)
        await until(lambda: store.pruned)


def test_a_forked_process_records_its_own_tasks_and_ends_within_its_time() -> None:
    script = """
import os, anyio
from fastapi import BackgroundTasks
from starlette.requests import Request
from fastapi_bgx import Bgx, Settings

bgx = Bgx(Settings(store="memory", log_events=set()))

async def quick(): ...

async def run():
    tasks = await bgx(BackgroundTasks(), Request({"type": "http"}))
    task = tasks.add_task(quick)
    await tasks()
    assert bgx.recorder.flush(10)
    assert bgx.recorder.store.get(task.id).process == bgx.recorder.process
    return bgx.recorder.process

parent = anyio.run(run)
child = os.fork()
if not child:
    mine = anyio.run(run)
    os._exit(0 if mine != parent else 3)
print(os.waitpid(child, 0)[1], anyio.run(run) == parent)
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["0", "True"], done.stderr


def test_at_the_end_of_the_interpreter_what_waits_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    monkeypatch.setattr("fastapi_bgx.recording.open_store", lambda _: store)
    bgx = Bgx(Settings(log_events=set(), store="memory"))
    task = bgx.runners.accept(quick, (), {}, None)
    module._leave_all()
    assert store.get(task.id)
    task.runner.drop(task, "nobody calls it")
    module._begin_anew()
    assert not bgx.recorder._changed


# Time.


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0
        self.date = datetime(2026, 1, 1, tzinfo=UTC)

    @property
    def now(self) -> Callable[[], float]:
        return lambda: self.seconds

    def wall(self) -> datetime:
        return self.date


def test_a_moment_keeps_its_date_though_the_clock_is_set() -> None:
    class Place:
        clock: Any = Clock()

    place = Place()
    moments = Moments(place)
    then = moments.date_of(90)
    assert then == datetime(2026, 1, 1, tzinfo=UTC) - timedelta(seconds=10)
    for _ in range(2 * MOST_ANCHORS):
        place.clock.seconds += 10
        place.clock.date += timedelta(hours=1)
        moments.look()
        assert moments.date_of(place.clock.seconds) == place.clock.date
    moments.look()
    assert len(moments._anchors) == MOST_ANCHORS
    place.clock = Clock()
    moments.look()
    assert moments.date_of(90) == then


# Settings.


def test_a_store_that_cannot_be_is_refused_without_its_password() -> None:
    with pytest.raises((SettingsError, ImportError)) as caught:
        Bgx(Settings(store="nonsense://user:hunter2@host/db"))
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(Settings(store="postgresql://user:hunter2@host/db"))


def test_what_an_adapter_says_of_a_url_is_passed_on_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def adapter(error: Exception) -> Any:
        def make(url: str) -> None:
            raise error

        return lambda _: type("Adapter", (), {"SqlStore": staticmethod(make)})

    for error, text in (
        (ValueError("cannot parse x://u:hunter2@h"), "used: cannot parse (the URL)"),
        (KeyError("hunter2"), "used: KeyError"),
    ):
        monkeypatch.setattr("fastapi_bgx.stores.import_module", adapter(error))
        with pytest.raises(SettingsError, match="BGX_STORE") as caught:
            Bgx(Settings(store="x://u:hunter2@h"))
        assert text in str(caught.value)
        assert "hunter2" not in str(caught.value)
    monkeypatch.setattr("fastapi_bgx.stores.import_module", adapter(ImportError("extra")))
    with pytest.raises(ImportError, match="extra"):
        open_store("sqlite://")
    made = type("Adapter", (), {"SqlStore": staticmethod(lambda url: url)})
    monkeypatch.setattr("fastapi_bgx.stores.import_module", lambda _: made)
    assert open_store("sqlite://") == "sqlite://"  # type: ignore[comparison-overlap]


async def test_without_a_store_and_without_anybody_asking_nothing_is_heard() -> None:
    bgx = Bgx(Settings(log_events=set()))
    assert not bgx.runners.publisher.heard
    assert isinstance(bgx.recorder.store, MemoryStore)
    assert bgx.runners.publisher.heard
    assert repr(bgx.recorder) == "recorder"
