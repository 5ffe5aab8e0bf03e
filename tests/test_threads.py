"""Threads of our own, and the mailbox that brings callbacks from them to the event loop."""

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest

from fastapi_bgx.backends import Backend, current_backend
from fastapi_bgx.threads import Mailbox, Threads
from tests.supervision import PATIENCE, Gauge, serving, tasks_of, until


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def run_and_wait(threads: Threads, *calls: Callable[[], Any]) -> None:
    """Submit calls and return when all of them have run."""
    ended = threading.Barrier(len(calls) + 1)

    def run(call: Callable[[], Any]) -> None:
        call()
        ended.wait(PATIENCE)

    for call in calls:
        threads.submit(lambda call=call: run(call))  # type: ignore[misc]
    ended.wait(PATIENCE)


def idle(threads: Threads, number: int) -> None:
    """Wait until so many threads have nothing to do."""
    wait_for(lambda: threads._idle == number)


def test_calls_run_at_the_same_time_in_daemon_threads() -> None:
    seen: list[threading.Thread] = []
    run_and_wait(Threads(), *[lambda: seen.append(threading.current_thread())] * 10)
    assert len(set(seen)) == 10
    assert all(thread.daemon for thread in seen)
    assert all(thread.name.startswith("bgx-thread-") for thread in seen)


def test_an_idle_thread_is_used_again() -> None:
    threads, seen = Threads(), list[int]()
    for _ in range(5):
        run_and_wait(threads, lambda: seen.append(threading.get_ident()))
        idle(threads, 1)
    assert len(set(seen)) == 1


def test_an_idle_thread_goes_away() -> None:
    threads, seen = Threads(idle_seconds=0.01), list[threading.Thread]()
    run_and_wait(threads, *[lambda: seen.append(threading.current_thread())] * 3)
    for thread in seen:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    run_and_wait(threads, lambda: seen.append(threading.current_thread()))
    assert len(seen) == 4


def test_an_idle_thread_keeps_nothing_of_its_last_call_alive() -> None:
    class Big:
        def __call__(self) -> None:
            pass

    threads, big = Threads(), Big()
    reference = weakref.ref(big)
    run_and_wait(threads, big)
    del big
    wait_for(lambda: reference() is None)


def test_no_call_is_lost_while_threads_come_and_go() -> None:
    threads, gauge = Threads(idle_seconds=0.0001), Gauge()

    def count() -> None:
        with gauge:
            pass

    def submit_many() -> None:
        for _ in range(500):
            threads.submit(count)

    submitters = [threading.Thread(target=submit_many) for _ in range(4)]
    for thread in submitters:
        thread.start()
    for thread in submitters:
        thread.join()
    wait_for(lambda: gauge.total == 2000)


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system has reached its limit of threads."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_a_call_without_a_thread_is_refused_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, calls = Threads(), list[str]()
    with monkeypatch.context() as limited:
        refuse_threads(limited)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threads.submit(lambda: calls.append("refused"))
    run_and_wait(threads, lambda: calls.append("later"))
    idle(threads, 1)
    assert calls == ["later"]


@pytest.mark.anyio
async def test_a_task_without_a_thread_fails_and_hurts_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def sibling() -> str:
        return "ran"

    async with serving(max_threads=1) as bgx:
        tasks = await tasks_of(bgx)
        failed, after = tasks.add_task(lambda: None), tasks.add_task(sibling)
        with monkeypatch.context() as limited:
            refuse_threads(limited)
            await tasks()
        assert failed.outcome is not None
        assert isinstance(failed.outcome.error, RuntimeError)
        assert after.status == "succeeded"
        assert bgx.stats().executors["thread"] == 0, "its slot was given back"


@pytest.mark.anyio
async def test_the_threads_of_the_server_stay_free() -> None:
    """anyio's threads serve sync routes, dependencies and files; those of tasks are others."""
    held, release = threading.Semaphore(0), threading.Event()

    def hold() -> None:
        held.release()
        release.wait(PATIENCE)

    async with serving(max_threads=50, mode="detached") as bgx:
        tasks = await tasks_of(bgx)
        holding = [tasks.using(concurrent=True).add_task(hold) for _ in range(50)]
        await tasks()
        await until(lambda: bgx.stats().executors["thread"] == 50)
        limiter = anyio.to_thread.current_default_thread_limiter()
        assert limiter.borrowed_tokens == 0
        with anyio.fail_after(PATIENCE):
            assert await anyio.to_thread.run_sync(lambda: "served") == "served"
        release.set()
        for task in holding:
            assert (await task.wait()).status == "succeeded"


# The mailbox.


@pytest.mark.anyio
async def test_letters_from_threads_are_opened_in_order_on_the_loops_thread() -> None:
    mailbox, opened, done = Mailbox(current_backend()), list[tuple[int, int]](), anyio.Event()

    def post_many() -> None:
        for number in range(1000):
            mailbox.post(lambda number=number: opened.append((number, threading.get_ident())))  # type: ignore[misc]
        mailbox.post(done.set)

    threading.Thread(target=post_many).start()
    with anyio.fail_after(PATIENCE):
        await done.wait()
    assert opened == [(number, threading.get_ident()) for number in range(1000)]


@pytest.mark.anyio
async def test_letters_of_many_threads_all_arrive() -> None:
    mailbox, opened = Mailbox(current_backend()), Gauge()

    def open_one() -> None:
        with opened:
            pass

    def post_many() -> None:
        for _ in range(500):
            mailbox.post(open_one)

    for _ in range(8):
        threading.Thread(target=post_many).start()
    await until(lambda: opened.total == 4000)


def test_many_letters_ring_once() -> None:
    rings, opened = list[Callable[[], Any]](), list[str]()

    class Loop:
        def call_soon_threadsafe(self, callback: Callable[[], Any]) -> None:
            rings.append(callback)

    mailbox = Mailbox(cast(Backend, Loop()))
    mailbox.post(lambda: opened.append("first"))
    mailbox.post(lambda: mailbox.post(lambda: opened.append("from inside")))
    mailbox.post(lambda: opened.append("last"))
    rings.pop()()
    assert opened == ["first", "last", "from inside"]
    while rings:
        rings.pop()()
    mailbox.post(lambda: opened.append("later"))
    assert len(rings) == 1


def test_a_letter_to_a_loop_that_has_ended_is_thrown_away(anyio_backend: str) -> None:
    class Big:
        def __call__(self) -> None:
            raise AssertionError("nobody is left to open it")

    async def make() -> Mailbox:
        return Mailbox(current_backend())

    mailbox, big = anyio.run(make, backend=anyio_backend), Big()
    reference = weakref.ref(big)
    mailbox.post(big)
    del big
    assert reference() is None


def test_what_is_submitted_in_answer_to_a_report_needs_no_other_thread() -> None:
    threads, used, ended = Threads(), list[int](), threading.Event()

    def call() -> None:
        used.append(threading.get_ident())

    def report() -> None:
        if len(used) < 100:
            threads.submit(call, report)
        else:
            ended.set()

    threads.submit(call, report)
    assert ended.wait(10)
    assert len(set(used)) == 1
