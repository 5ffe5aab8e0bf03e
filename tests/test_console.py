"""`bgx.records`: what became of tasks, whoever runs them, however the store does."""

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI

from fastapi_bgx import Bgx, Settings, Status, StoreUnavailable, Task, Tasks, Unguarded, console
from fastapi_bgx.records import Query
from fastapi_bgx.stores import MemoryStore
from tests.asgi import client_of
from tests.shared import SharedStore, recording
from tests.supervision import serving, tasks_of, until

pytestmark = pytest.mark.anyio

Make = Callable[..., Any]


@asynccontextmanager
async def started(*processes: Bgx) -> AsyncIterator[None]:
    """Each of them with its lifespan, all on the event loop of the test."""
    for bgx in processes:
        bgx.start()
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            for bgx in processes:
                await bgx.drain(0)


@pytest.fixture
def store() -> Iterator[SharedStore]:
    """One store for all processes of a test."""
    made = SharedStore()
    yield made
    made.hangs.set()


@pytest.fixture
def process(store: SharedStore, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes one more process that shares the store."""
    return lambda **settings: recording(store, monkeypatch, **settings)


async def heard_of(store: SharedStore, *processes: Bgx) -> None:
    """Wait until the store knows of them."""
    ids = {bgx.recorder.process for bgx in processes}
    await until(lambda: ids <= {each.id for each in store.processes()})


async def bad() -> None:
    raise ConnectionError("lost")


async def run(bgx: Bgx, function: Callable[..., Any], **options: Any) -> Task[Any]:
    """A task of a request that is over."""
    tasks = await tasks_of(bgx)
    task = tasks.using(**options).add_task(function)
    await tasks()
    return task


# Own tasks.


async def test_recording_begins_when_it_is_first_asked_for() -> None:
    async with serving() as bgx:
        before = await run(bgx, bad)
        assert bgx.records is bgx.records
        after = await run(bgx, bad)
        page = await bgx.records.find(Query())
        assert [record.id for record in page.records] == [after.id], "and tells of what follows"
        record = await bgx.records.get(before.id)
        assert record is not None, "the history still has it"
        assert (record.status, record.error_type) == ("failed", "ConnectionError")


async def test_what_has_just_happened_is_told() -> None:
    async with serving() as bgx:
        records = bgx.records
        for _ in range(20):
            task = await run(bgx, bad)
            newest = (await records.find(Query(limit=1))).records[0]
            assert (newest.id, newest.status, newest.retryable) == (task.id, "failed", True)


async def test_every_question_can_be_asked() -> None:
    async with serving() as bgx:
        records, now = bgx.records, datetime.now(UTC)
        last = (await records.changes(None)).last
        task = await run(bgx, bad)
        hour = timedelta(hours=1)
        assert (await records.summary(now - hour, now + hour)).ended == {"failed": 1}
        assert [each.last_id for each in await records.failures(now - hour, now + hour)] == [
            task.id
        ]
        assert [each.id for each in (await records.changes(last)).records] == [task.id]
        await until(lambda: bgx.recorder.store.processes())
        assert [each.id for each in await records.processes()] == [bgx.recorder.process]
        with pytest.raises(ValueError, match="no page has given"):
            await records.find(Query(cursor="nonsense"))


async def test_a_live_task_is_told_of_without_the_store(store: SharedStore, process: Make) -> None:
    bgx = process()
    async with started(bgx):
        release = anyio.Event()
        task = await run(bgx, release.wait, detached=True)
        await anyio.wait_all_tasks_blocked()
        record = await bgx.records.get(task.id)
        assert record is not None
        assert (record.id, record.status) == (task.id, "running")
        release.set()
    assert not store.looks


async def test_a_task_that_has_just_ended_is_told_of_though_the_store_hangs(
    process: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def good() -> None:
        pass

    takes = threading.Event()
    monkeypatch.setattr(SharedStore, "write", lambda *_: takes.wait(10))
    bgx = process()
    async with started(bgx):
        task = await run(bgx, good)
        assert bgx.get(task.id) is None, "no history keeps it"
        record = await bgx.records.get(task.id)
        takes.set()
    assert record is not None
    assert (record.id, record.status) == (task.id, "succeeded")


async def test_what_nobody_knows_is_none(store: SharedStore, process: Make) -> None:
    bgx = process()
    async with started(bgx):
        await heard_of(store, bgx)
        own = bgx.recorder.process
        for nonsense in ("nonsense", "other-1", f"{own}-99", f"{own}-x", "-1", "\x00-1", "²-²"):
            store.looks.clear()
            assert await bgx.records.get(nonsense) is None
            assert len(store.looks) == 1, "it is asked once, and nobody waits"
            assert await bgx.records.cancel(nonsense) is None
            assert await bgx.records.retry(nonsense) is None


async def test_what_is_still_held_is_offered_after_a_lifespan_has_ended(process: Make) -> None:
    bgx = process()
    async with started(bgx):
        task = await run(bgx, bad)
        assert (await bgx.records.find(Query())).records[0].retryable
        bgx.recorder.store.leave(bgx.recorder.process)  # as at the end of each lifespan
        told = bgx.recorder.store.get(task.id)
        assert told is not None
        assert not told.retryable
        assert (await bgx.records.find(Query())).records[0].retryable


async def test_what_is_held_no_longer_is_not_offered(process: Make) -> None:
    bgx = process(retryable=1, history=0)
    async with started(bgx):
        first, second = await run(bgx, bad), None
        assert (await bgx.records.find(Query())).records[0].retryable
        last = (await bgx.records.changes(None)).last - 1
        assert (await bgx.records.changes(last)).records[0].retryable
        second = await run(bgx, bad)
        page = await bgx.records.find(Query())
        assert [(each.id, each.retryable) for each in page.records] == [
            (second.id, True),
            (first.id, False),
        ]
        record = await bgx.records.get(first.id)
        assert record is not None
        assert not record.retryable
        answer = await bgx.records.retry(first.id)
        assert answer is not None
        assert (answer.done, answer.detail) == (False, "its arguments are not held any more")
        assert answer.task_id is None


def test_each_request_of_a_test_client_has_an_event_loop_of_its_own(anyio_backend: str) -> None:
    app, bgx = FastAPI(), Bgx(Settings())
    bgx.install(app)

    @app.post("/")
    async def add(tasks: Tasks) -> str:
        return tasks.add_task(bad).id

    @app.get("/{task_id}")
    async def status(task_id: str) -> Any:
        return await bgx.records.get(task_id), await bgx.records.find(Query(text=task_id))

    client = client_of(app, anyio_backend)
    client.get("/nonsense")
    for _ in range(3):
        task_id = client.post("/").json()
        record, page = client.get(f"/{task_id}").json()
        assert record["status"] == page["records"][0]["status"] == "failed"


# A store that is away.


async def test_a_store_that_hangs_costs_little(
    store: SharedStore, process: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "STORE_SECONDS", 0.05)
    bgx = process()
    async with started(bgx):
        task = await run(bgx, bad)
        store.hangs.clear()
        refused: list[str] = []

        async def ask() -> None:
            with pytest.raises(StoreUnavailable) as caught:
                await bgx.records.get("other-1")
            refused.append(caught.value.why)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(ask)
        await ask()
        assert len(store.looks) == console.STORE_THREADS, "no more threads are taken"
        assert refused[-1].startswith(f"{console.STORE_THREADS} earlier questions")
        record = await bgx.records.get(task.id)
        assert record is not None, "own tasks are told of all the same"
        store.hangs.set()


async def test_an_error_of_the_store_is_told_as_such() -> None:
    class Broken(MemoryStore):
        def find(self, query: Query) -> Any:
            raise OSError(query)

    async with serving() as bgx:
        bgx.records._store = Broken()
        with pytest.raises(StoreUnavailable, match="OSError"):
            await bgx.records.find(Query())


async def test_in_a_forked_process_it_has_threads_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as bgx:
        await bgx.records.find(Query())
        before = bgx.records._questions
        await bgx.records.find(Query())
        assert bgx.records._questions is before
        pid = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        bgx.records._here()
        assert bgx.records._questions is not before


# Tasks of other processes.


async def test_the_tasks_of_another_process_are_told_of(process: Make) -> None:
    one, other = process(), process()
    async with started(one, other):
        task = await run(other, bad)
        other.recorder.flush(1)
        record = await one.records.get(task.id)
        assert record is not None
        assert (record.process, record.retryable) == (other.recorder.process, True)


async def test_a_task_that_another_process_has_just_accepted_is_found(
    store: SharedStore, process: Make
) -> None:
    """A request for its status may come before its record has reached the store."""
    one, other = process(), process()
    async with started(one, other):
        await heard_of(store, other)
        release = anyio.Event()
        for _ in range(10):
            task = await run(other, release.wait, detached=True)
            assert await one.records.get(task.id) is not None
        release.set()


async def test_looking_again_has_an_end(
    store: SharedStore, process: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(console, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(console, "MOST_LOOKING", 2)
    one, other = process(), process()
    async with started(one, other):
        await heard_of(store, other)
        unknown = f"{other.recorder.process}-999"
        assert await one.records.get(unknown) is None
        assert len(store.looks) > 1
        store.looks.clear()
        one.records._looking = 2
        assert await one.records.get(unknown) is None
        assert len(store.looks) == 1, "too many look already: nobody can hold the server up"
        one.records._looking = 0
        store.leave(other.recorder.process)
        store.looks.clear()
        other.recorder.leave()
        assert await one.records.get(unknown) is None
        assert len(store.looks) == 1, "its process has left"


async def test_a_task_of_another_process_is_cancelled(process: Make) -> None:
    one, other = process(), process()
    async with started(one, other):
        task = await run(other, anyio.sleep_forever, detached=True)
        answer = await one.records.cancel(task.id)
        assert answer is not None
        assert (answer.done, answer.detail) == (True, "")
        await until(lambda: task.done)
        assert task.status == "cancelled"
        other.recorder.flush(1)
        again = await one.records.cancel(task.id)
        assert again is not None
        assert (again.done, again.detail) == (False, "it has ended already: cancelled")


async def test_a_task_of_another_process_is_run_again(process: Make) -> None:
    ran: list[int] = []

    async def flaky() -> None:
        ran.append(1)
        if len(ran) == 1:
            raise ConnectionError

    one, other = process(), process()
    async with started(one, other):
        task = await run(other, flaky)
        answer = await one.records.retry(task.id)
        assert answer is not None
        assert answer.done
        assert answer.task_id is not None
        again = other.get(answer.task_id) or (await one.records.get(answer.task_id))
        assert again is not None
        await until(lambda: len(ran) == 2)
        other.recorder.flush(1)
        record = await one.records.get(answer.task_id)
        assert record is not None
        assert record.retry_of == task.id
        for task_id, why in (
            (answer.task_id, "it succeeded"),
            ((await run(other, anyio.sleep_forever, detached=True)).id, "it has not ended yet"),
        ):
            refused = await one.records.retry(task_id)
            assert refused is not None
            assert refused.detail.startswith(why)


async def test_a_task_that_has_just_ended_elsewhere_is_run_again_though_the_store_is_behind(
    store: SharedStore, process: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = process(), process()
    async with started(one, other):
        await heard_of(store, other)
        task = await run(other, bad)
        record = await other.records.get(task.id)
        assert record is not None
        behind = record.model_copy(update={"status": Status.RUNNING, "ended_at": None})
        monkeypatch.setattr(store, "get", lambda _: behind)
        answer = await one.records.retry(task.id)
        assert answer is not None
        assert answer.done, answer.detail


async def test_what_stands_against_it_there_is_told_here(process: Make) -> None:
    one, other = process(), process(retryable=0)
    async with started(one, other):
        task = await run(other, bad)
        answer = await one.records.retry(task.id)
        assert answer is not None
        assert (answer.done, answer.detail) == (False, "Settings.retryable is 0")


async def test_a_process_that_does_not_answer_is_named(
    store: SharedStore, process: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "COMMAND_SECONDS", 0.05)
    monkeypatch.setattr(console, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(SharedStore, "asked_of", lambda _, __: ())
    one, other = process(), process()
    async with started(one, other):
        await heard_of(store, other)
        task = await run(other, anyio.sleep_forever, detached=True)
        where = other.recorder.process
        silent = await one.records.cancel(task.id)
        assert silent is not None
        assert silent.detail.startswith(f"its process {where} did not answer within 0.05 s")

        def ask(_: Any, __: Any) -> None:
            store.leave(where)

        monkeypatch.setattr(SharedStore, "ask", ask)
        monkeypatch.setattr(SharedStore, "beat", lambda _, __: None)
        for _ in "as it is asked", "before":
            gone = await one.records.cancel(task.id)
            assert gone is not None
            assert (gone.done, gone.detail) == (False, f"its process {where} has ended")


async def test_without_a_shared_store_nothing_leads_to_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a forked process, which has the records of its parent, and not its tasks."""
    store = MemoryStore()
    one, other = recording(store, monkeypatch), recording(store, monkeypatch)
    async with started(one, other):
        task = await run(other, anyio.sleep_forever, detached=True)
        other.recorder.flush(1)
        answer = await one.records.cancel(task.id)
        assert answer is not None
        assert answer.detail == (
            f"nothing leads to its process {other.recorder.process}, which has ended"
        )


async def test_a_record_that_is_left_of_an_own_task_is_cancelled_no_more(
    store: SharedStore, process: Make
) -> None:
    bgx = process()
    async with started(bgx):
        task = await run(bgx, anyio.sleep_forever, detached=True)
        kept = bgx.recorder.record_of(task)
        left = kept.model_copy(update={"id": f"{kept.process}-999"})
        store.write([left])
        answer = await bgx.records.cancel(left.id)
        assert answer is not None
        assert answer.detail == "its process does not know it any more"


# The router.


def test_a_router_has_to_be_guarded() -> None:
    bgx = Bgx(Settings())
    with pytest.raises(Unguarded, match=r"bgx\.router needs a dependency"):
        bgx.router()


def test_routers_for_several_prefixes_share_the_records() -> None:
    bgx, app = Bgx(Settings()), FastAPI()
    for prefix, options in (
        ("/ops", {"dependencies": [Depends(lambda: None)]}),
        ("/bgx", {"public": True, "dashboard": False}),
    ):
        router = bgx.router(**options)
        assert isinstance(router, APIRouter)
        app.include_router(router, prefix=prefix)
    assert bgx.records is bgx.records
