"""What a task tells of its progress is read outside, wherever it runs.

And the other way round: a running task may ask whether it is to stop.
"""

import math
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from fastapi_bgx import (
    BackgroundTasks,
    Bgx,
    Cancelled,
    CurrentTask,
    Progress,
    Settings,
    Task,
    current_task,
    endings,
    processes,
)
from fastapi_bgx.backends import Backend
from fastapi_bgx.events import TaskProgressed
from fastapi_bgx.progress import MOST_NOTE, ProgressReader, ProgressWriter
from fastapi_bgx.runners import Runners
from fastapi_bgx.timers import SystemClock, Timers
from tests import work
from tests.logs import Lines, logged, named
from tests.supervision import PATIENCE, serving, tasks_of, until
from tests.test_timers import Loop


def here() -> CurrentTask:
    task = current_task()
    assert task is not None
    return task


def nothing() -> None: ...


# On the event loop and in a thread.


@pytest.mark.anyio
@pytest.mark.parametrize("executor", ["async", "thread"])
async def test_what_it_tells_is_read_outside_while_it_runs_and_after_its_end(executor: str) -> None:
    told, go_on = threading.Event(), threading.Event()

    def in_thread() -> None:
        here().progress(0.25, "loading")
        told.set()
        go_on.wait(PATIENCE)
        here().progress(1, "done")

    async def on_loop() -> None:
        here().progress(0.25, "loading")
        told.set()
        await until(go_on.is_set)
        here().progress(1, "done")

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        function: Callable[[], Any] = in_thread if executor == "thread" else on_loop
        task = tasks.using(detached=True).add_task(function)
        seen = [task.last_progress]
        await tasks()
        await until(told.is_set)
        seen.append(task.last_progress)
        go_on.set()
        await task.wait()
        seen.append(task.last_progress)
    assert seen == [None, Progress(0.25, "loading"), Progress(1.0, "done")]
    assert [type(each.fraction) for each in seen if each is not None] == [float, float]


@pytest.mark.anyio
async def test_a_note_holds_on_until_there_is_another() -> None:
    seen: list[Progress | None] = []

    async def tell() -> None:
        for told in (0.1,), (0.2, "packing"), (0.3,), (0.4, "sending"), (0.5, ""), (0.6,):
            here().progress(*told)
            seen.append(task.last_progress)

    tasks = await tasks_of(Bgx(Settings()))
    task = tasks.add_task(tell)
    await tasks()
    notes = [progress.note for progress in seen if progress is not None]
    assert notes == ["", "packing", "packing", "sending", "", ""]


@pytest.mark.parametrize("fraction", [-0.1, 1.1, 40, math.nan, math.inf])
def test_what_is_no_fraction_is_refused(fraction: float) -> None:
    message = rf"progress is a fraction from 0 to 1, not {fraction}"
    task = outside()
    with pytest.raises(ValueError, match=message):
        task.progress(fraction)
    assert task.last_progress is None
    worker = worker_task("nowhere")
    with pytest.raises(ValueError, match=message):
        worker.progress(fraction)


def outside() -> Task[Any]:
    """A task without an event loop, which never runs."""
    task = Runners(Settings(log_events=set())).accept(nothing, (), {}, None)
    task.claimed = True
    return task


def test_another_attempt_begins_anew() -> None:
    task = outside()
    task.progress(0.8, "sending")
    task.attempt += 1
    assert task.last_progress is None
    task.progress(0.1)
    assert task.last_progress == Progress(0.1)


def test_progress_is_a_frozen_value() -> None:
    progress: Any = Progress(0.5, "half")
    with pytest.raises(AttributeError):
        progress.fraction = 0.6


# Events.


class Still:
    """A clock that tells the time it is told, and wakes by that of the machine."""

    def __init__(self) -> None:
        self.time = 100.0
        self.now: Callable[[], float] = lambda: self.time
        self.wall = SystemClock().wall
        self.call_later = SystemClock().call_later


@pytest.mark.anyio
@pytest.mark.parametrize("executor", ["async", "thread"])
async def test_at_most_one_event_in_a_second_tells_of_it(executor: Any) -> None:
    clock = Still()
    bgx = Bgx(Settings())
    bgx.runners.clock = clock

    def tell() -> None:
        for tenth in range(31):
            clock.time = 100 + tenth / 8
            here().progress(tenth / 40, f"number {tenth}")

    def tell_too() -> None:
        here().progress(0.5)

    with logged() as lines:
        tasks = await tasks_of(bgx)
        tasks.using(executor=executor).add_task(tell)
        tasks.using(executor=executor).add_task(tell_too)
        await tasks()
    told = [(each["task"], each["fraction"]) for each in named(lines, "task.progressed")]
    assert told == [("tell", 0.0), ("tell", 0.2), ("tell", 0.4), ("tell", 0.6), ("tell_too", 0.5)]
    first = named(lines, "task.progressed")[0]
    assert (first["note"], first["log_level"]) == ("number 0", "debug")


@pytest.mark.anyio
async def test_no_event_is_made_that_nobody_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: object) -> None:
        raise AssertionError("an event was made")

    async def tell() -> None:
        here().progress(0.5)
        heard.append(task.runner.progressed(task))

    heard: list[bool] = []
    monkeypatch.setattr(TaskProgressed, "__init__", made)
    tasks = await tasks_of(Bgx(Settings(log_events={"task.failed"})))
    task = tasks.add_task(tell)
    await tasks()
    assert (task.last_progress, heard) == (Progress(0.5), [False])


@pytest.mark.anyio
async def test_a_thread_that_outlives_its_task_tells_on_and_no_event_follows_the_final_one() -> (
    None
):
    go_on, over = threading.Event(), threading.Event()

    def overrun() -> None:
        go_on.wait(PATIENCE)
        here().progress(0.5, "late")
        over.set()

    with logged() as lines:
        async with serving() as bgx:
            tasks = await tasks_of(bgx)
            task = tasks.using(timeout=0.01).add_task(overrun)
            await tasks()
            assert task.status == "timed_out"
            go_on.set()
            await until(over.is_set)
            await until(lambda: named(lines, "task.overran"))
    assert task.last_progress == Progress(0.5, "late")
    assert not named(lines, "task.progressed")


def test_a_task_without_a_loop_may_tell_of_its_progress() -> None:
    tasks = BackgroundTasks()
    task = tasks.add_task(nothing)
    task.progress(0.5)
    assert task.last_progress == Progress(0.5)
    assert not task.runner.progressed(task)
    tasks.drop("nobody will call it")


# In a worker process.

Files = Callable[[], list[Path]]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """The files by which worker processes tell of their progress; none may be left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def find() -> list[Path]:
        return sorted(tmp_path.glob("fastapi-bgx-*"))

    yield find
    assert find() == []


@pytest.mark.anyio
async def test_a_process_tells_while_it_runs(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PROGRESS_SECONDS", 0.01)
    monkeypatch.setattr(endings, "PROGRESS_SECONDS", 0.0)
    gate = tmp_path / "gate"
    with logged() as lines:
        async with serving() as bgx:
            tasks = await tasks_of(bgx)
            view = tasks.using(executor="process", timeout=60)
            task = view.using(detached=True).add_task(work.tell_and_wait, str(gate))
            await tasks()
            await until(lambda: task.last_progress == Progress(0.5, "loading"))
            await until(lambda: progressed(lines)[-1:] == [(0.5, "loading")])
            assert (task.status, len(files())) == ("running", 1)
            gate.touch()
            outcome = await task.wait()
    assert (outcome.status, outcome.error) == ("succeeded", None)
    assert task.last_progress == Progress(1.0, "done")
    told = progressed(lines)
    assert told.count((0.5, "loading")) == 1, "what has not changed is not told again"
    assert told[-1] == (1.0, "done")
    assert lines.index(named(lines, "task.progressed")[-1]) < lines.index(
        named(lines, "task.succeeded")[0]
    )


def progressed(lines: Lines) -> list[tuple[float, str]]:
    return [(line["fraction"], line["note"]) for line in named(lines, "task.progressed")]


@pytest.mark.anyio
async def test_of_a_process_that_is_killed_the_last_progress_stays(files: Files) -> None:
    bgx = Bgx(Settings(log_events=set()))
    tasks = await tasks_of(bgx)
    view = tasks.using(executor="process")
    hanging = view.using(timeout=0.5).add_task(work.tell_and_hang)
    silent = view.add_task(work.pid)
    wrong = view.add_task(work.tell, (0.2, "right"), (2, "wrong"))
    lively = view.add_task(work.tell, *((each / 10, "x" * each) for each in range(11)))
    await tasks()
    assert (hanging.status, hanging.last_progress) == ("timed_out", Progress(0.75, "hanging"))
    assert (silent.status, silent.last_progress) == ("succeeded", None)
    assert (wrong.status, wrong.last_progress) == ("failed", Progress(0.2, "right"))
    assert str(wrong.error) == "progress is a fraction from 0 to 1, not 2"
    assert lively.last_progress == Progress(1.0, "x" * 10)
    lively.attempt += 1  # as the runner does
    assert [lively.last_progress] == [None]


@pytest.mark.anyio
async def test_a_thread_that_is_left_in_a_process_makes_no_file(
    tmp_path: Path, files: Files
) -> None:
    tasks = await tasks_of(Bgx(Settings(log_events=set())))
    view = tasks.using(executor="process")
    task = view.add_task(work.leave_a_thread_that_tells, str(tmp_path))
    await tasks()
    assert task.status == "succeeded"
    (tmp_path / "ended").touch()
    await until((tmp_path / "told").exists)
    assert (task.last_progress, files()) == (None, [])


def test_a_process_is_looked_at_once_in_a_second() -> None:
    class Runner:
        def progressed(self, task: Task[Any]) -> bool:
            told.append(task.last_progress)
            return True

    told: list[Progress | None] = []
    last: Progress | None = None
    loop, task = Loop(), outside()
    task.runner = cast(Any, Runner())
    task.progress_elsewhere = lambda: last
    publisher = processes.ProgressPublisher(task, Timers(cast(Backend, None), loop))
    loop.advance(1.5)
    assert told == []
    last = Progress(0.1)
    loop.advance(0.25)
    assert told == []
    loop.advance(0.25)
    assert told == [Progress(0.1)]
    loop.advance(3)
    last = Progress(0.2)
    publisher.stop()
    assert told == [Progress(0.1), Progress(0.2)]
    last = Progress(0.3)
    loop.advance(3)
    assert len(told) == 2


# The file.


@pytest.fixture
def reader(files: Files) -> Iterator[ProgressReader]:
    reader = ProgressReader()
    yield reader
    reader.close()


def worker_task(path: str) -> processes.WorkerTask:
    return processes.WorkerTask(
        processes.TaskFacts(id="1", name="n", attempt=2, remaining=None, progress_path=path)
    )


def test_what_is_written_is_read_also_when_the_file_is_gone(
    reader: ProgressReader, files: Files
) -> None:
    inside = worker_task(reader.path)
    assert reader.read() is None
    assert files() == [], "a task that tells nothing needs no file"
    for number in range(10):
        inside.progress(number / 10, f"number {number}")
        assert reader.read() == Progress(number / 10, f"number {number}")
    inside.progress(1)
    [file] = files()
    assert file.stat().st_mode & 0o777 == 0o600
    assert reader.close() == reader.read() == Progress(1.0, "number 9")
    assert files() == []


def test_a_thread_that_the_function_left_behind_tells_nobody(
    reader: ProgressReader, files: Files
) -> None:
    inside = worker_task(reader.path)
    inside.progress(0.5)
    inside.end()
    assert reader.close() == Progress(0.5)
    inside.progress(0.6)
    assert files() == []


@pytest.mark.parametrize(
    ("note", "arrives"),
    [
        ("", ""),
        ("grüße, 世界", "grüße, 世界"),
        ("x" * 1000, "x" * MOST_NOTE),
        ("x" + "é" * 1000, "x" + "é" * ((MOST_NOTE - 1) // 2)),  # no half of a letter
        ("\ud800", "?"),
    ],
)
def test_a_note_is_cut(reader: ProgressReader, note: str, arrives: str) -> None:
    ProgressWriter(reader.path).write(0.5, note)
    assert reader.read() == Progress(0.5, arrives)


def test_a_message_that_is_not_whole_is_not_read(reader: ProgressReader, files: Files) -> None:
    writer = ProgressWriter(reader.path)
    writer.write(0.1, "one")
    writer.write(0.2, "two")
    [file] = files()
    whole = file.read_bytes()
    torn = bytearray(whole)
    torn[torn.index(b"two")] ^= 1
    file.write_bytes(torn)
    assert reader.read() == Progress(0.1, "one")
    torn[torn.index(b"one")] ^= 1
    file.write_bytes(torn)
    assert reader.read() == Progress(0.1, "one"), "what was read last"
    file.write_bytes(whole)
    assert reader.read() == Progress(0.2, "two")
    file.write_bytes(b"\xff" * len(whole))
    assert reader.read() == Progress(0.2, "two")


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_file_that_is_not_ready_tells_nothing(reader: ProgressReader, content: bytes) -> None:
    Path(reader.path).write_bytes(content)
    assert reader.read() is None


def test_where_no_file_can_be_made_the_function_runs_on(reader: ProgressReader) -> None:
    worker_task("/no/such/folder/file").progress(0.5)
    Path(reader.path).mkdir()  # in the way: it can be neither made, read nor removed
    worker_task(reader.path).progress(0.5)
    assert reader.read() is reader.close() is None
    Path(reader.path).rmdir()


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns fifty times as often as by default: more races in less time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 50)
    yield
    sys.setswitchinterval(interval)


def test_while_one_thread_writes_another_reads_whole_messages(
    reader: ProgressReader, eager_threads: None
) -> None:
    writer, stop = ProgressWriter(reader.path), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number = (number + 1) % 1000
            writer.write(number / 1000, f"{number}" * (1 + number % 40))

    thread = threading.Thread(target=write)
    thread.start()
    seen = [reader.read() for _ in range(500)]
    stop.set()
    thread.join()
    for progress in seen:
        if progress is not None:
            number = round(progress.fraction * 1000)
            assert progress.note == (f"{number}" * (1 + number % 40))[:MOST_NOTE]


# Asked to stop.


@pytest.mark.anyio
async def test_a_task_asks_whether_it_is_to_stop() -> None:
    begun, asked, seen = threading.Event(), threading.Event(), list[object]()

    def work_on() -> None:
        inside = here()
        inside.check_cancelled()
        begun.set()
        asked.wait(PATIENCE)
        try:
            inside.check_cancelled()
        except Cancelled as error:
            seen.append(error)

    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.using(detached=True).add_task(work_on)
        await tasks()
        await until(begun.is_set)
        task.runner.cancel(task, "a test")
        asked.set()
        await until(lambda: seen)
    [error] = seen
    assert isinstance(error, Cancelled)
    assert str(error) == "task work_on was asked to stop"
    assert error.task == "work_on"


def test_a_worker_process_is_never_asked_to_stop() -> None:
    inside = worker_task("nowhere")
    inside.check_cancelled()
    assert not inside.cancelled
