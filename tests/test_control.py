"""What the console can have done with the tasks of this process, and other processes with it."""

import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from fastapi_bgx import Bgx, StoreUnavailable, Task
from fastapi_bgx.control import MOST_ANSWERS, ProcessControl
from fastapi_bgx.options import Limit
from fastapi_bgx.records import Answer, Command
from tests.shared import SharedStore
from tests.supervision import holding, tasks_of, until

pytestmark = pytest.mark.anyio


class Recording:
    """A recorder that records nothing."""

    process = "here"

    def __init__(self) -> None:
        self.store = SharedStore()
        self.flushed: list[float] = []

    def flush(self, timeout: float) -> bool:
        self.flushed.append(timeout)
        return False

    def record_of(self, task: Task[Any]) -> Any:
        return f"record of {task.id}"

    def unwritten(self, task_id: str) -> Any:
        return "not written yet" if task_id == "here-1" else None


class Controlled:
    """The control over a `Bgx`, and what a test looks at."""

    def __init__(self, bgx: Bgx) -> None:
        self.bgx = bgx
        self.recording = Recording()
        self.control = ProcessControl(bgx.runners, bgx._held, self.recording)

    def command(self, action: Any, task_id: str, id: str = "c") -> Command:
        return Command(id=id, process="here", task_id=task_id, action=action)

    def answers(self, *commands: Command) -> dict[str, Answer]:
        """What the commands are answered; in another thread, as the recorder has it."""
        thread = threading.Thread(target=self.control.obey, args=(commands,))
        thread.start()
        thread.join()
        return self.recording.store.answers


@pytest.fixture
async def controlled(anyio_backend: str) -> AsyncIterator[Controlled]:
    async with holding() as bgx:
        yield Controlled(bgx)


async def bad(*_: object) -> None:
    raise ConnectionError("lost")


async def added(bgx: Bgx, function: Any, *args: Any, **options: Any) -> Task[Any]:
    tasks = await tasks_of(bgx)
    task = tasks.using(**options).add_task(function, *args)
    await tasks()
    return task


async def test_it_tells_of_the_tasks_that_are_known_here(controlled: Controlled) -> None:
    task = await added(controlled.bgx, bad)
    control: Any = controlled.control
    assert control.process == "here"
    assert control.live(task.id) == f"record of {task.id}"
    assert control.live("here-1") == "not written yet"
    assert control.live("other-1") is None
    assert control.is_held(task.id)
    assert not control.is_held("other-1")


async def test_a_store_that_is_behind_is_waited_for_a_moment_only(controlled: Controlled) -> None:
    controlled.control.flush()
    assert controlled.recording.flushed == [0.2]


async def test_a_command_to_cancel_is_carried_out_and_answered(controlled: Controlled) -> None:
    task = await added(controlled.bgx, anyio.sleep_forever, detached=True)
    answers = controlled.answers(controlled.command("cancel", task.id))
    assert answers == {"c": Answer(done=True)}
    await until(lambda: task.done)
    answers = controlled.answers(controlled.command("cancel", task.id, "again"))
    assert answers["again"] == Answer(done=False, detail="it has ended already: cancelled")


async def test_a_command_to_retry_is_carried_out_on_the_event_loop(controlled: Controlled) -> None:
    threads: list[threading.Thread] = []

    async def note() -> None:
        threads.append(threading.current_thread())
        raise ConnectionError

    task = await added(controlled.bgx, note)
    answers = controlled.answers(controlled.command("retry", task.id))
    assert answers["c"].done
    again = controlled.bgx.get(answers["c"].task_id or "")
    assert again is not None
    await again.wait()
    assert again.retry_of == task.id
    assert threads == [threading.current_thread()] * 2


async def test_what_is_not_known_is_answered_too(controlled: Controlled) -> None:
    for action in "cancel", "retry":
        answers = controlled.answers(controlled.command(action, "here-99", action))
        assert answers[action] == Answer(done=False, detail="its process does not know it any more")


async def test_a_command_whose_answer_got_lost_is_not_carried_out_twice(
    controlled: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await added(controlled.bgx, bad)
    command = controlled.command("retry", task.id)

    def refuse(*_: Any) -> None:
        raise StoreUnavailable("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(SharedStore, "answer", refuse)
        assert controlled.answers(command, controlled.command("retry", "here-9", "next")) == {}
    await until(lambda: len(controlled.bgx.find(name="bad")) == 2)
    answers = controlled.answers(command)
    assert answers["c"].done, "as it was"
    assert answers["c"].task_id == controlled.bgx.find(name="bad")[0].id
    assert len(controlled.bgx.find(name="bad")) == 2


async def test_the_answers_that_are_kept_are_bounded(controlled: Controlled) -> None:
    commands = [
        controlled.command("cancel", "here-1", str(number)) for number in range(MOST_ANSWERS + 5)
    ]
    assert len(controlled.answers(*commands)) == len(commands)
    assert next(iter(controlled.control._answers)) == "5"


async def test_a_full_backlog_says_when_to_ask_again() -> None:
    async with holding(max_concurrency=1, max_backlog=1) as bgx:
        controlled = Controlled(bgx)
        task = await added(bgx, bad)
        release, waiting = anyio.Event(), await tasks_of(bgx)
        await added(bgx, release.wait, detached=True)
        await anyio.wait_all_tasks_blocked()
        waiting.add_task(release.wait)
        answer = controlled.control.retry(task.id)
        assert answer is not None
        assert (answer.done, answer.retry_after_s) == (False, 5)
        assert answer.detail.startswith("1 background tasks are waiting already")
        release.set()
        await waiting()


async def test_a_task_that_cannot_be_added_any_more_says_so(controlled: Controlled) -> None:
    """The function that makes the key of its limit looks at what the arguments are now."""
    box = {"tenant": "a"}

    def tenant_of(box: dict[str, str]) -> str:
        return box["tenant"]

    limit = Limit("tenant", 1, key=tenant_of)

    async def empty(box: dict[str, str]) -> None:
        box.clear()
        raise ConnectionError

    task = await added(controlled.bgx, empty, box, limit=limit)
    answer = controlled.control.retry(task.id)
    assert answer == Answer(done=False, detail="add_task refused it: KeyError")
    box["tenant"] = "b"
    answer = controlled.control.retry(task.id)
    assert answer is not None
    assert answer.done, "an attempt that was refused does not stand in the way"
