"""Where functions run: on the event loop, in a thread, in a worker process (promise 3).

To start a worker process takes a second, and each event loop has its own. So what they do is
looked at once for each event loop, in one go, and then told by many small tests.
"""

import contextlib
import functools
import io
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from anyio import BrokenWorkerProcess

from fastapi_bgx import Bgx, Outcome, Settings, Status, Task, WrongCall, processes
from tests import work
from tests.logs import Lines, logged, named
from tests.supervision import PATIENCE, serving, tasks_of, until

# Threads and the loop.


@pytest.mark.anyio
async def test_a_function_runs_where_it_should() -> None:
    loop = threading.get_ident()

    async def later() -> int:
        return threading.get_ident()

    tasks = await tasks_of(Bgx(Settings()))
    added: dict[str, Task[int]] = {
        "async": tasks.add_task(later),
        "thread": tasks.add_task(threading.get_ident),
        "sync on the loop": tasks.using(executor="async").add_task(threading.get_ident),
        "from a thread": tasks.add_task(lambda: later()),
    }
    await tasks()
    on_loop = {name: task.value == loop for name, task in added.items()}
    assert on_loop == {
        "async": True,
        "thread": False,
        "sync on the loop": True,
        "from a thread": True,
    }


@pytest.mark.anyio
async def test_a_sync_task_does_not_block_the_event_loop() -> None:
    release, ticks = threading.Event(), 0
    tasks = await tasks_of(Bgx(Settings()))
    tasks.add_task(release.wait, PATIENCE)
    async with anyio.create_task_group() as group:
        group.start_soon(tasks)
        while ticks < 20:
            ticks += 1
            await anyio.sleep(0.001)
        release.set()
    assert ticks == 20


# What a worker process does, in one go.


class Process(NamedTuple):
    """One task that ran in a worker process, and what was seen of it."""

    task: Task[Any]
    output: str
    lines: Lines

    @property
    def outcome(self) -> Outcome[Any]:
        assert self.task.outcome is not None
        return self.task.outcome


CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "first": (work.pid, ()),
    "second": (work.pid, ()),
    "add": (functools.partial(work.add, two=2), (1,)),
    "count": (work.count, ()),
    "fail": (work.fail, ()),
    "fail unsendable": (work.fail_unsendable, ()),
    "exit": (work.fail_with, (SystemExit,)),
    "interrupt": (work.fail_with, (KeyboardInterrupt,)),
    "stop iteration": (work.fail_with, (StopIteration,)),
    "close": (work.fail_with, (GeneratorExit,)),
    "leak": (work.leak_a_cancellation, ()),
    "lambda": (work.give_back_a_lambda, ()),
    "unwelcome": (work.give_back_unwelcome, ()),
    "print": (work.print_and_write, ()),
    "print and fail": (work.print_and_fail, ()),
    "much": (work.write_very_much, ()),
    "read": (work.read, ()),
    "look": (work.look, ()),
    "signals": (work.survive_signals_to_the_group, ()),
    "child": (work.terminate_a_child, ()),
    "last": (work.pid, ()),
}


@functools.cache
def ran(backend: str) -> dict[str, Process]:
    """Each of `CALLS`, one after the other, by one `Bgx` on one event loop."""
    found: dict[str, Process] = {}

    async def main() -> None:
        bgx = Bgx(Settings())
        for name, (func, args) in CALLS.items():
            tasks = await tasks_of(bgx)
            with logged() as lines, contextlib.redirect_stderr(io.StringIO()) as output:
                # Shorter than it takes to start a process: that does not count.
                view = tasks.using(executor="process", timeout=0.3 if name == "first" else 20)
                task = view.add_task(func, *args)
                await tasks()
            found[name] = Process(task, output.getvalue(), lines)

    anyio.run(main, backend=backend)
    return found


def test_it_runs_in_another_process_that_is_used_again(anyio_backend: str) -> None:
    pids = {ran(anyio_backend)[name].outcome.value for name in ("first", "second", "last")}
    assert len(pids) == 1
    assert os.getpid() not in pids


def test_the_start_of_a_process_does_not_count_for_the_timeout(anyio_backend: str) -> None:
    assert ran(anyio_backend)["first"].outcome.status == "succeeded"


def test_arguments_go_there_and_results_come_back(anyio_backend: str) -> None:
    assert ran(anyio_backend)["add"].outcome.value == 3


def test_what_it_changes_is_not_changed_here(anyio_backend: str) -> None:
    assert ran(anyio_backend)["count"].outcome.value == 1
    assert work.calls == 0


def test_its_error_comes_back_with_the_traceback_from_there(anyio_backend: str) -> None:
    process = ran(anyio_backend)["fail"]
    error = process.outcome.error
    assert type(error) is LookupError
    assert error.args == ("lost", 3)
    assert isinstance(error.__cause__, processes.RemoteTraceback)
    assert 'raise LookupError("lost", 3)' in str(error.__cause__)
    [line] = named(process.lines, "task.failed")
    assert (line["exc_info"], line["executor"]) == (error, "process")


def test_an_error_that_cannot_be_sent_is_told_in_words(anyio_backend: str) -> None:
    error = ran(anyio_backend)["fail unsendable"].outcome.error
    assert type(error) is RuntimeError
    assert str(error) == "Unsendable: one and two"
    assert "in fail_unsendable" in str(error.__cause__)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("exit", SystemExit),
        ("interrupt", KeyboardInterrupt),
        ("stop iteration", StopIteration),
        ("close", GeneratorExit),
    ],
)
def test_whatever_it_raises_is_captured(anyio_backend: str, name: str, kind: type) -> None:
    outcome = ran(anyio_backend)[name].outcome
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert type(outcome.error) is kind
    assert outcome.error.args == ("from far away",)


def test_a_cancellation_that_leaks_there_is_a_failure(anyio_backend: str) -> None:
    outcome = ran(anyio_backend)["leak"].outcome
    assert (outcome.status, type(outcome.error).__name__) == ("failed", "CancelledError")


def test_a_result_that_cannot_be_sent_is_a_failure(anyio_backend: str) -> None:
    for name, message in ("lambda", "give_back_a_lambda"), ("unwelcome", "not at home"):
        outcome = ran(anyio_backend)[name].outcome
        assert outcome.status == "failed"
        assert message in str(outcome.error)


def test_its_output_is_seen_also_that_of_the_processes_it_starts(anyio_backend: str) -> None:
    output = ran(anyio_backend)["print"].output.splitlines()
    assert output == ["printed", "to stderr", "to descriptor 1", "from a child"]


def test_its_output_is_seen_when_it_fails(anyio_backend: str) -> None:
    process = ran(anyio_backend)["print and fail"]
    assert (process.outcome.status, process.output) == ("failed", "before it failed\n")


def test_output_that_nobody_would_read_does_not_block_it(anyio_backend: str) -> None:
    process = ran(anyio_backend)["much"]
    assert process.outcome.status == "succeeded"
    assert process.output.endswith("xxxthe end"), "the last of it"
    assert len(process.output) == processes.MOST_OUTPUT


def test_its_children_read_nothing_that_is_not_theirs(anyio_backend: str) -> None:
    assert ran(anyio_backend)["read"].outcome.value == b""


def test_it_sees_its_task(anyio_backend: str) -> None:
    process = ran(anyio_backend)["look"]
    task_id, name, attempt, left, timed_out, cancelled = process.outcome.value
    assert (task_id, name, attempt) == (process.task.id, "look", 1)
    assert 0 < left <= 20
    assert (timed_out, cancelled) == (False, False)


def test_signals_to_the_whole_group_are_for_the_server(anyio_backend: str) -> None:
    assert ran(anyio_backend)["signals"].outcome.value == "alive"


def test_its_children_can_be_terminated(anyio_backend: str) -> None:
    assert ran(anyio_backend)["child"].outcome.value == -15


# What cannot be sent is refused in the route.


@pytest.mark.anyio
async def test_what_cannot_be_pickled_is_refused_at_add_task() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(executor="process")
        for func, args in (lambda: None, ()), (work.take, (lambda: None,)):
            with pytest.raises(WrongCall, match=r"cannot be pickled .* use a function of a module"):
                view.add_task(func, *args)
        assert not tasks.tasks
        assert bgx.stats().waiting == 0


# Processes that die.


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.anyio
async def test_a_process_that_runs_too_long_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "pid"
    bgx = Bgx(Settings(max_processes=1))
    with logged() as lines:
        tasks = await tasks_of(bgx)
        view = tasks.using(executor="process")
        killed = view.using(timeout=0.5).add_task(work.hang, str(note))
        after = tasks.add_task(lambda: "ran")
        again = view.add_task(work.pid)
        await tasks()
        pid = int(note.read_text())
        await until(lambda: not alive(pid))
        assert (killed.status, after.status) == ("timed_out", "succeeded")
        assert killed.outcome is not None
        assert killed.outcome.error is not None
        assert str(killed.outcome.error) == "hang ran longer than its timeout of 0.5 s"
        assert again.outcome is not None
        assert again.outcome.value != pid, "a new process"

        # The worker runs, and what it has to unpickle never ends.
        monkeypatch.setattr(processes, "WARM_SECONDS", 0.2)
        tasks = await tasks_of(bgx)
        view = tasks.using(executor="process", timeout=20)
        never_ready = view.add_task(work.take, work.HangsInTheWorker())
        await tasks()
        assert never_ready.status == "failed"
        assert str(never_ready.error) == "no worker process was ready after 0.2 s"
        await until(lambda: not alive(again.value))
        assert bgx.stats().executors["process"] == bgx.stats().overrunning == 0
    assert len(named(lines, "task.timed_out")) == 1
    assert not named(lines, "task.overran")


@pytest.mark.anyio
async def test_a_process_that_dies_is_a_failure_and_the_next_task_gets_another() -> None:
    bgx = Bgx(Settings(max_processes=1))
    tasks = await tasks_of(bgx)
    view = tasks.using(executor="process")
    crashed = [view.add_task(work.exit_at_once), view.add_task(work.kill_itself)]
    after = view.add_task(work.add, 1, two=2)
    await tasks()
    for task in crashed:
        assert task.status == "failed"
        assert isinstance(task.error, BrokenWorkerProcess)
    assert after.outcome is not None
    assert after.outcome.value == 3
    assert bgx.stats().executors["process"] == 0


@pytest.mark.anyio
async def test_a_process_is_killed_with_its_request_and_by_a_shutdown(tmp_path: Path) -> None:
    notes = [tmp_path / "request", tmp_path / "shutdown"]
    bgx = Bgx(Settings())
    bgx.start()
    tasks = await tasks_of(bgx)
    inline = tasks.using(executor="process").add_task(work.hang, str(notes[0]))
    async with anyio.create_task_group() as group:
        group.start_soon(tasks)
        await until(lambda: notes[0].exists() and notes[0].read_text())
        group.cancel_scope.cancel()
    tasks = await tasks_of(bgx)
    detached = tasks.using(executor="process", detached=True).add_task(work.hang, str(notes[1]))
    await tasks()
    await until(lambda: notes[1].exists() and notes[1].read_text())
    report = await bgx.drain(grace=0)
    assert (inline.status, detached.status) == ("cancelled", "cancelled")
    assert [ref.id for ref in report.cancelled] == [detached.id]
    for note in notes:
        pid = int(note.read_text())
        await until(lambda pid=pid: not alive(pid))  # type: ignore[misc]


@pytest.mark.anyio
async def test_no_more_processes_run_than_max_processes_allows(tmp_path: Path) -> None:
    async with serving(max_processes=2) as bgx:
        tasks = await tasks_of(bgx)
        view = tasks.using(executor="process", concurrent=True)
        added = [view.add_task(work.span, str(tmp_path)) for _ in range(8)]
        await tasks()
        assert bgx.stats().limiters["processes"].slots == 2
        assert bgx.stats().totals[Status.SUCCEEDED] == 8
    spans = sorted(task.value for task in added)
    starts_and_ends = sorted([(s, 1) for s, _, _ in spans] + [(e, -1) for _, e, _ in spans])
    inside = [sum(step for _, step in starts_and_ends[: n + 1]) for n in range(16)]
    assert max(inside) == 2
    assert len({pid for _, _, pid in spans}) == 2


def facts(remaining: float | None) -> processes.TaskFacts:
    return processes.TaskFacts(
        id="1", name="n", attempt=1, remaining=remaining, progress_path="nowhere"
    )


def test_a_worker_sees_its_own_timeout_pass() -> None:
    seen = processes.WorkerTask(facts(remaining=0.0))
    assert (seen.timed_out, seen.remaining()) == (True, 0.0)
    seen = processes.WorkerTask(facts(remaining=20.0))
    left = seen.remaining()
    assert left is not None
    assert 0 < left <= 20
    assert not seen.timed_out
    seen = processes.WorkerTask(facts(remaining=None))
    assert (seen.timed_out, seen.remaining()) == (False, None)
