"""Questions to what may hang: bounded in time, in threads, and in how they fail."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest

from fastapi_bgx import StoreUnavailable
from fastapi_bgx.asking import Asking
from tests.supervision import PATIENCE, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What a hanging question waits for; released at the end."""
    event = threading.Event()
    yield event
    event.set()


def give(value: Any) -> Any:
    return value


def fail(error: BaseException) -> None:
    raise error


async def refusal(asking: Asking, question: Callable[[], Any]) -> str:
    with pytest.raises(StoreUnavailable) as caught:
        await asking.ask(question)
    return caught.value.why


async def test_the_answer_comes_from_a_thread_of_its_own() -> None:
    asking = Asking(2, PATIENCE)
    thread = await asking.ask(threading.current_thread)
    assert thread.daemon
    assert thread is not threading.current_thread()
    assert await asking.ask(threading.current_thread) is thread, "it is used again"


async def test_what_is_wrong_with_the_question_is_told_as_it_is() -> None:
    asking, away = Asking(1, PATIENCE), StoreUnavailable("no route to host")
    with pytest.raises(ValueError, match="no such cursor"):
        await asking.ask(partial(fail, ValueError("no such cursor")))
    assert await refusal(asking, partial(fail, away)) == away.why


@pytest.mark.parametrize(
    "kind", [OSError, LookupError, SystemExit, KeyboardInterrupt, UnicodeError]
)
async def test_every_other_error_says_that_the_store_is_not_there(
    kind: type[BaseException],
) -> None:
    """A `UnicodeError` is a `ValueError`, and of a row that cannot be read."""
    asking = Asking(1, PATIENCE)
    assert await refusal(asking, partial(fail, kind("password=hunter2"))) == kind.__name__
    assert await asking.ask(partial(give, 1)) == 1, "the thread goes on"


async def test_a_question_that_hangs_is_given_up(release: threading.Event) -> None:
    asking = Asking(1, 0.01)
    why = await refusal(asking, partial(release.wait, PATIENCE))
    assert why == "it took longer than 0.01 s"


async def test_while_all_hang_further_questions_are_refused_at_once(
    release: threading.Event,
) -> None:
    asking = Asking(2, 0.05)
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(refusal, asking, partial(release.wait, PATIENCE))
    asked: list[int] = []
    before = anyio.current_time()
    for _ in range(100):
        assert (await refusal(asking, partial(asked.append, 1))).startswith("2 earlier questions")
    assert anyio.current_time() - before < 0.05 * 50, "none of them waited"
    assert not asked
    release.set()
    await until(lambda: not asking._running)
    assert await asking.ask(partial(give, 1)) == 1, "it answers again"


async def test_who_comes_too_many_waits_for_its_turn(release: threading.Event) -> None:
    asking, answered = Asking(1, PATIENCE), list[int]()
    async with anyio.create_task_group() as group:
        group.start_soon(asking.ask, partial(release.wait, PATIENCE))
        for number in range(5):
            await anyio.wait_all_tasks_blocked()
            group.start_soon(asking.ask, partial(answered.append, number))
        await anyio.wait_all_tasks_blocked()
        assert not answered
        release.set()
    assert answered == [0, 1, 2, 3, 4]


async def test_who_leaves_the_queue_is_not_asked(release: threading.Event) -> None:
    asking, asked = Asking(1, PATIENCE), list[str]()
    async with anyio.create_task_group() as group:
        group.start_soon(asking.ask, partial(release.wait, PATIENCE))
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01):
            await asking.ask(partial(asked.append, "left"))
        release.set()
        await asking.ask(partial(asked.append, "stayed"))
    assert asked == ["stayed"]


async def test_no_more_threads_than_told_however_many_ask() -> None:
    asking, threads = Asking(3, PATIENCE), set[threading.Thread]()
    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(asking.ask, lambda: threads.add(threading.current_thread()))
    assert 1 <= len(threads) <= 3


async def test_a_system_without_threads_is_a_store_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        why = await refusal(Asking(1, PATIENCE), lambda: None)
    assert why == "the system has no more threads to ask it in"


def test_from_several_event_loops_one_after_the_other(
    anyio_backend: str, release: threading.Event
) -> None:
    """As a test client does, with a new loop for each request; one ends before its answer."""
    asking = Asking(2, PATIENCE)

    async def leave() -> None:
        with anyio.move_on_after(0.01):
            await asking.ask(partial(release.wait, PATIENCE))

    async def ask() -> int:
        return await asking.ask(partial(give, 7))

    anyio.run(leave, backend=anyio_backend)
    assert [anyio.run(ask, backend=anyio_backend) for _ in range(3)] == [7, 7, 7]
    release.set()
    with suppress(StoreUnavailable):
        assert anyio.run(ask, backend=anyio_backend) == 7
