"""What every store promises: in memory, SQLite and PostgreSQL alike."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import (
    Answer,
    Command,
    FullRecord,
    LimiterReading,
    Page,
    ProcessReading,
    Query,
    Record,
    Step,
    Summary,
)
from fastapi_bgx.stores import MemoryStore, Store
from fastapi_bgx.stores.sql import SqlStore
from tests.postgres import address, schema
from tests.records import NOW, SECOND, a_task

HOUR = timedelta(hours=1)
FAILED = frozenset({Status.FAILED})


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def store(kind: str, tmp_path: Path) -> Iterator[Store]:
    with ExitStack() as stack:
        if kind == "memory":
            yield MemoryStore()
            return
        url = f"sqlite:///{tmp_path}/tasks.db"
        if kind == "postgresql":
            url = stack.enter_context(schema(address()))
        opened = SqlStore(url, clock=lambda: NOW.timestamp())
        stack.callback(opened.close)
        yield opened


in_a_database = pytest.mark.parametrize("kind", ["sqlite", "postgresql"], indirect=True)


def ids(page: Page) -> list[str]:
    return [record.id for record in page.records]


def test_a_record_is_read_as_it_was_written(store: Store) -> None:
    full = a_task(
        Status.FAILED,
        detached=True,
        limit="smtp",
        priority=-3,
        attempt=2,
        attempts=3,
        due_at=NOW + HOUR,
        ended_at=NOW + 2 * HOUR + timedelta(microseconds=1),
        duration_s=7200.5,
        queued_s=0.25,
        timeout_s=math.inf,
        progress=0.5,
        note="half way",
        error_type="ConnectionError",
        error_message="no “bank” 🏦",
        error_place="app/mail.py:31 in send",
        fingerprint="abc",
        reason="why",
        overrunning=True,
        retry_of="p-1",
        retryable=True,
        arguments={"to": "ada"},
        value="null",
        traceback="Traceback",
        steps=(Step(at=NOW, kind="log", attempt=1, level="error", text="x", seconds=0.1),),
        steps_left_out=4,
    )
    store.write([full])
    read = store.get(full.id)
    assert read == full.model_copy(update={"change": 1})
    assert store.find(Query()).records == (read.brief(),)


@pytest.mark.parametrize("end", ["since", "until", "ended_since", "ended_until"])
def test_a_moment_without_a_time_zone_is_refused(end: str) -> None:
    with pytest.raises(ValueError, match="timezone"):
        Query.model_validate({end: datetime(2026, 11, 20)})


def test_nobody_is_found_by_an_unknown_id(store: Store) -> None:
    assert store.get("nobody") is None


def test_nothing_written_changes_nothing(store: Store) -> None:
    store.write([])
    assert store.changes(None, 10).last == 0


def test_a_record_takes_the_place_of_the_one_before(store: Store) -> None:
    first = a_task(Status.RUNNING)
    store.write([first])
    store.write([first.model_copy(update={"note": "later"})])
    assert [record.note for record in store.find(Query()).records] == ["later"]


def test_a_record_moves_in_the_list_when_it_turns_out_to_be_of_another_moment(store: Store) -> None:
    first, second = a_task(), a_task()
    store.write([first, second])
    assert [record.id for record in store.find(Query()).records] == [second.id, first.id]
    store.write([first.model_copy(update={"added_at": second.added_at + HOUR})])
    assert [record.id for record in store.find(Query()).records] == [first.id, second.id]


def test_a_record_in_memory_is_there_while_it_changes() -> None:
    store, task = MemoryStore(), a_task(Status.RUNNING)
    asked: list[Future[Any]] = []

    class Watched(dict[str, FullRecord]):
        def pop(self, key: str, default: Any = None) -> Any:
            value = super().pop(key, default)
            asked.extend([readers.submit(store.get, key), readers.submit(store.find, Query())])
            wait(asked, 0.05)  # whoever does not wait for the end of the change has the answer now
            return value

    store.write([task])
    store._records = Watched(store._records)
    with ThreadPoolExecutor(2) as readers:
        store.write([task.model_copy(update={"note": "half way"})])
        got, page = (each.result() for each in asked)
    assert got.note == "half way"
    assert [record.note for record in page.records] == ["half way"]


@pytest.mark.parametrize("together", [True, False])
def test_an_ended_record_never_becomes_unfinished(store: Store, together: bool) -> None:
    ended = a_task(Status.SUCCEEDED)
    late = ended.model_copy(update={"status": Status.RUNNING, "ended_at": None})
    for batch in [[ended, late]] if together else [[ended], [late]]:
        store.write(batch)
    found = store.get(ended.id)
    assert found is not None
    assert found.status is Status.SUCCEEDED


def test_an_end_that_comes_late_is_the_true_one(store: Store) -> None:
    buried = a_task(Status.CANCELLED)
    store.write([buried])
    store.write([buried.model_copy(update={"status": Status.SUCCEEDED})])
    found = store.get(buried.id)
    assert found is not None
    assert found.status is Status.SUCCEEDED


def test_pages_lead_through_all_records_the_last_added_first(store: Store) -> None:
    tasks = [a_task(added_at=NOW + number // 3 * SECOND) for number in range(10)]
    store.write(tasks)
    seen: list[str] = []
    query = Query(limit=3)
    while True:
        page = store.find(query)
        seen += ids(page)
        if page.next_cursor is None:
            break
        query = query.model_copy(update={"cursor": page.next_cursor})
    assert seen == [each.id for each in sorted(tasks, key=lambda t: (t.added_at, t.id))][::-1]


@pytest.mark.parametrize("cursor", ["nonsense", "WzFlOTk5LCJ4Il0"])
def test_a_cursor_that_no_page_gave_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(ValueError, match="no page has given"):
        store.find(Query(cursor=cursor))


@pytest.mark.parametrize("cursor", ["WzFlMzAwLCJcdTAwMDAiXQ", "Wy0xZTMwMCwiIl0"])
def test_a_cursor_from_far_away_is_no_error(store: Store, cursor: str) -> None:
    store.write([a_task()])
    assert len(store.find(Query(cursor=cursor)).records) in {0, 1}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SEND", True),
        ("100%", True),
        ("100_", False),
        ("%", True),
        ("_", False),
        ("ÜBER", True),
        ("back\\slash", True),
        ("'; drop table", False),
        ("\0", False),
        ("", True),
    ],
)
def test_a_search_takes_every_character_for_itself(store: Store, text: str, found: bool) -> None:
    store.write([a_task(Status.FAILED, error_message="100% über back\\slash")])
    assert bool(store.find(Query(text=text)).records) is found


@pytest.mark.parametrize(
    "field", ["name", "id", "function", "error_type", "error_message", "reason"]
)
def test_a_search_looks_at_every_text(store: Store, field: str) -> None:
    there = a_task().model_copy(update={field: "a needle"})
    store.write([there, a_task()])
    assert ids(store.find(Query(text="NEEDLE"))) == [there.id]


def test_what_no_database_can_hold_keeps_no_other_record_out(store: Store) -> None:
    odd = a_task(Status.FAILED, name="nul\0", priority=10**30, value="\0")
    odd = odd.model_copy(update={"error_message": "half \ud83d a pair", "traceback": "\udfff"})
    other = a_task()
    store.write([odd, other])
    assert store.get(other.id) is not None
    assert store.get(odd.id) is not None


def test_failures_are_grouped_and_the_newest_speaks(store: Store) -> None:
    def failed(name: str, second: int, fingerprint: str | None, message: str) -> FullRecord:
        return a_task(
            Status.FAILED,
            name=name,
            ended_at=NOW + second * SECOND,
            fingerprint=fingerprint,
            error_type=None if fingerprint is None else "OSError",
            error_place="a.py:1 in f",
            error_message=message,
        )

    store.write(
        [
            failed("a", 1, "x", "first"),
            failed("b", 3, "x", "last"),
            failed("a", 2, "x", "middle"),
            failed("c", 9, None, "unknown"),
            failed("late", 100, "x", "outside"),
            a_task(Status.CANCELLED, ended_at=NOW),
        ]
    )
    unknown, x = store.failures(NOW, NOW + 100 * SECOND, 10)
    assert (unknown.fingerprint, unknown.error_type, unknown.count) == ("", "", 1)
    assert (x.fingerprint, x.count, x.names, x.error_message) == ("x", 3, ("b", "a"), "last")
    assert (x.first_at, x.last_at) == (NOW + SECOND, NOW + 3 * SECOND)
    assert store.failures(NOW, NOW + 100 * SECOND, 1) == (unknown,)


def test_ten_names_of_a_failure_are_told(store: Store) -> None:
    store.write([a_task(Status.FAILED, name=f"n{n:02}", fingerprint="x") for n in range(12)])
    (failure,) = store.failures(NOW - HOUR, NOW + 24 * HOUR, 5)
    assert failure.names == tuple(f"n{n:02}" for n in range(11, 1, -1))


def test_changes_are_told_once_in_their_order(store: Store) -> None:
    one, two, three = a_task(Status.QUEUED), a_task(), a_task()
    store.write([one, two])
    last = store.changes(None, 10).last
    assert store.changes(last, 10).records == ()
    store.write([three, one.model_copy(update={"status": Status.RUNNING})])
    changes = store.changes(last, 10)
    assert [(r.id, r.status) for r in changes.records] == [
        (three.id, Status.SUCCEEDED),
        (one.id, Status.RUNNING),
    ]
    assert not changes.missed
    assert store.changes(changes.last, 10).records == ()


def test_more_changes_than_were_asked_for_are_missed(store: Store) -> None:
    store.write([a_task() for _ in range(4)])
    assert len(store.changes(0, 4).records) == 4
    missed = store.changes(0, 3)
    assert missed.missed
    assert not missed.records
    assert missed.last == store.changes(None, 1).last


@pytest.mark.parametrize("after", [-1, 99, 2**70])
def test_a_change_that_never_was_is_missed(store: Store, after: int) -> None:
    store.write([a_task()])
    assert store.changes(after, 10).missed


def test_numbers_of_changes_are_not_given_again_after_the_newest_is_forgotten(
    store: Store,
) -> None:
    store.write([a_task()])
    last = store.changes(None, 1).last
    store.prune(NOW + 1000 * HOUR, 0)
    store.write([a_task()])
    assert len(store.changes(last, 10).records) == 1


def test_old_and_surplus_records_are_forgotten_and_unfinished_ones_stay(store: Store) -> None:
    running = a_task(Status.RUNNING, added_at=NOW - 100 * HOUR)
    old, *kept = (a_task(ended_at=NOW + n * HOUR) for n in range(5))
    store.write([running, old, *kept])
    assert store.prune(NOW + HOUR, 10) == 1
    assert store.prune(NOW, 3) == 1
    assert store.prune(NOW, 2**70) == 0
    assert {r.id for r in store.find(Query()).records} == {running.id, *(r.id for r in kept[1:])}


def test_both_rules_forget_together(store: Store) -> None:
    store.write([a_task(ended_at=NOW + n * HOUR) for n in range(6)])
    assert store.prune(NOW + 4 * HOUR, 5) == 4
    assert store.prune(NOW, 0) == 2


@in_a_database
def test_many_records_are_forgotten_at_once(store: Store) -> None:
    store.write([a_task() for _ in range(1_005)])
    assert store.prune(NOW - HOUR, 2) == 1_003


def test_a_summary_counts_and_times(store: Store) -> None:
    store.write(
        [
            a_task(ended_at=NOW, duration_s=2.0, queued_s=1.0),
            a_task(Status.FAILED, ended_at=NOW + 30 * SECOND, duration_s=4.0, queued_s=3.0),
            a_task(Status.EXPIRED, ended_at=NOW + 59 * SECOND, name="other", queued_s=100.0),
            a_task(ended_at=NOW + 60 * SECOND),
            a_task(Status.RETRYING),
        ]
    )
    summary = store.summary(NOW, NOW + 60 * SECOND, 2)
    assert [(b.at, b.ended, b.failed) for b in summary.buckets] == [
        (NOW, 1, 0),
        (NOW + 30 * SECOND, 2, 1),
    ]
    assert summary.bucket_s == 30
    assert summary.ended == {Status.SUCCEEDED: 1, Status.FAILED: 1, Status.EXPIRED: 1}
    assert summary.unfinished == {Status.RETRYING: 1}
    assert [(n.name, n.ended, n.failed) for n in summary.names] == [("send", 2, 1), ("other", 1, 0)]
    assert summary.p50_s == near(2)
    assert summary.p99_s == near(4)
    assert summary.queued_p95_s == near(3)
    assert summary.names[1].p50_s is None


def near(value: float) -> Any:
    return pytest.approx(value, rel=0.0501, abs=1e-6)


def test_a_span_without_time_is_empty(store: Store) -> None:
    store.write([a_task(ended_at=NOW)])
    assert store.summary(NOW, NOW, 3).ended == {}
    assert store.summary(NOW, NOW - HOUR, 1).ended == {}


def a_process(number: int, **fields: Any) -> ProcessReading:
    at = NOW + number * SECOND
    known = {"id": f"p{number}", "host": "h", "pid": 1, "started_at": at, "seen_at": at}
    return ProcessReading.model_validate(known | fields)


def test_processes_are_known_until_they_leave(store: Store) -> None:
    reading = LimiterReading(slots=2, taken=1, waiting=0, rate="3/s", spent=1)
    young, old = a_process(2, limiters={"smtp": reading}, lost=3), a_process(1)
    store.beat(young.model_copy(update={"seen_at": NOW}))
    store.beat(old)
    store.beat(young)
    assert store.processes() == (old, young)
    store.leave(old.id)
    store.leave("nobody")
    assert store.processes() == (young,)


def held(process: str) -> FullRecord:
    return a_task(Status.FAILED, process=process, retryable=True, overrunning=True)


def test_who_leaves_runs_nothing_again_and_runs_no_thread(store: Store) -> None:
    left, there, never_heard_of = held("p1"), held("p2"), held("p3")
    store.beat(a_process(1))
    store.beat(a_process(2))
    store.write([left, there, never_heard_of])
    before = store.changes(None, 10).last
    store.leave("p1")
    store.leave("p3")
    found = [store.get(each.id) for each in (left, there, never_heard_of)]
    assert [each and (each.retryable, each.overrunning) for each in found] == [
        (False, False),
        (True, True),
        (False, False),
    ]
    assert ids(store.find(Query(overrunning=True))) == [there.id]
    assert store.changes(before, 10).records == ()
    assert len(store.changes(0, 10).records) == 3


@in_a_database
def test_who_is_dead_runs_nothing_again_and_runs_no_thread(store: Store) -> None:
    dead, alive = held("p1"), held("p2")
    store.beat(a_process(1))
    store.beat(a_process(2))
    store.write([dead, alive])
    assert store.bury(NOW + 2 * SECOND) == 0
    assert ids(store.find(Query(overrunning=True))) == [alive.id]
    found = store.get(dead.id), store.get(alive.id)
    assert [each and each.retryable for each in found] == [False, True]


@in_a_database
def test_a_dead_process_is_forgotten_and_its_tasks_end(store: Store) -> None:
    dead, alive = a_process(0), a_process(1, seen_at=NOW + HOUR)
    store.beat(dead)
    store.beat(alive)
    at = {"added_at": NOW - 5 * SECOND, "process": dead.id, "overrunning": True}
    began = a_task(Status.RUNNING, started_at=NOW - 3 * SECOND, queued_s=2.0, **at)
    late = a_task(Status.RETRYING, started_at=NOW + 9 * SECOND, due_at=NOW + HOUR, **at)
    waited = a_task(Status.QUEUED, **at)
    unknown = a_task(Status.QUEUED, added_at=NOW - HOUR, process="gone before")
    young = a_task(Status.QUEUED, added_at=NOW + 59 * SECOND, process="not heard of yet")
    other = a_task(Status.RUNNING, process=alive.id)
    done = a_task(process=dead.id)
    store.write([began, late, waited, unknown, young, other, done])
    before = store.changes(None, 1).last

    assert store.bury(NOW + 58 * SECOND) == 4

    assert store.processes() == (alive,)
    ended = {record.id: record for record in store.changes(before, 10).records}
    assert set(ended) == {began.id, late.id, waited.id, unknown.id}
    assert all(r.reason == "its process ended without a shutdown" for r in ended.values())
    assert not any(r.overrunning or r.due_at for r in ended.values())
    told = ended[began.id]
    assert (told.status, told.ended_at) == (Status.CANCELLED, dead.seen_at)
    assert (told.queued_s, told.duration_s) == (2.0, 3.0)
    assert ended[late.id].ended_at == late.started_at
    told = ended[waited.id]
    assert (told.status, told.queued_s, told.duration_s) == (Status.DROPPED, 5.0, None)
    assert ended[unknown.id].ended_at == NOW + 58 * SECOND
    assert store.bury(NOW + 58 * SECOND) == 0


@in_a_database
def test_a_command_is_asked_and_answered(store: Store) -> None:
    first = Command(id="c2", process="p", task_id="p-1", action="cancel")
    second = Command(id="c1", process="p", task_id="p-2", action="retry")
    for command in (first, second, first):
        store.ask(command)
    assert store.asked_of("p") == (first, second)
    assert store.asked_of("q") == ()
    assert store.answer_to(first.id) is None
    answer = Answer(done=False, detail="it has ended", task_id="p-3", retry_after_s=1.5)
    store.answer(first.id, answer)
    store.answer("nobody", answer)
    assert store.answer_to(first.id) == answer
    assert store.answer_to("nobody") is None
    assert store.asked_of("p") == (second,)


def test_commands_are_forgotten_after_an_hour(tmp_path: Path) -> None:
    now = NOW.timestamp()
    store = SqlStore(f"sqlite:///{tmp_path}/tasks.db", clock=lambda: now)
    store.ask(Command(id="c", process="p", task_id="p-1", action="cancel"))
    now += 3_600
    store.prune(NOW, 10)
    assert store.asked_of("p")
    now += 1
    store.prune(NOW, 10)
    assert not store.asked_of("p")
    store.close()


def test_memory_has_no_other_process_to_ask_or_bury() -> None:
    store = MemoryStore()
    with pytest.raises(LookupError):
        store.ask(Command(id="c", process="p", task_id="p-1", action="cancel"))
    store.answer("c", Answer(done=True))
    assert store.bury(NOW) == 0
    assert store.asked_of("p") == ()
    assert store.answer_to("c") is None


def test_a_store_opens_itself_again(store: Store) -> None:
    store.open()
    store.open()
    store.write([a_task()])
    store.close()
    if store.shared:
        assert len(store.find(Query()).records) == 1
    store.close()
    store.close()


# Whatever is written and asked, a database answers as the memory does.

moments = st.integers(0, 120).map(lambda half: NOW + half * timedelta(milliseconds=500))
words = st.sampled_from(["a", "b", "A b%", "ß_", "\\", "Ünï", "zz"])


@st.composite
def records(draw: st.DrawFn) -> FullRecord:
    status = draw(st.sampled_from(Status))
    duration = st.none() | st.floats(0, 1e7)
    return FullRecord(
        id=f"p-{draw(st.integers(0, 12))}",
        name=draw(words),
        status=status,
        function=draw(words),
        executor="async",
        process="p",
        added_at=draw(moments),
        ended_at=draw(moments) if status.final else None,
        duration_s=draw(duration) if status.final else None,
        queued_s=draw(duration),
        fingerprint=draw(st.none() | words),
        error_message=draw(words),
        overrunning=draw(st.booleans()),
        note=draw(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
        retryable=draw(st.booleans()),
    )


queries = st.builds(
    Query,
    status=st.frozensets(st.sampled_from(Status), max_size=4),
    name=st.none() | words,
    text=st.none() | words | st.sampled_from("ÜBZ%"),
    since=st.none() | moments,
    until=st.none() | moments,
    ended_since=st.none() | moments,
    ended_until=st.none() | moments,
    fingerprint=st.none() | words,
    overrunning=st.none() | st.booleans(),
    limit=st.integers(1, 5),
)
steps = st.lists(st.lists(records(), max_size=8), min_size=1, max_size=4)


def all_pages(store: Store, query: Query) -> list[tuple[Record, ...]]:
    pages = []
    while True:
        page = store.find(query)
        pages.append(tuple(r.model_copy(update={"change": 0}) for r in page.records))
        if page.next_cursor is None:
            return pages
        query = query.model_copy(update={"cursor": page.next_cursor})


def changed(store: Store, after: int) -> tuple[list[str], bool]:
    changes = store.changes(after, 10)
    return [record.id for record in changes.records], changes.missed


def close_enough(ours: Summary, exact: Summary) -> None:
    def told(summary: Summary) -> list[Any]:
        rows: list[Any] = [summary, *summary.buckets, *summary.names]
        return [each for row in rows for each in (row.p50_s, row.p95_s, row.p99_s)]

    def counts(summary: Summary) -> dict[str, Any]:
        timed = {"p50_s": True, "p95_s": True, "p99_s": True}
        rows = {"__all__": timed}
        left_out: Any = {"queued_p95_s": True, **timed, "buckets": rows, "names": rows}
        return summary.model_dump(exclude=left_out)

    assert counts(ours) == counts(exact)
    for mine, true in zip(
        [*told(ours), ours.queued_p95_s], [*told(exact), exact.queued_p95_s], strict=True
    ):
        assert (mine is None) == (true is None)
        assert true is None or mine == near(true)


@pytest.fixture(params=["sqlite", "postgresql"])
def emptied(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], SqlStore]]:
    """A database that is opened once, and emptied for each example."""
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/tasks.db"
        if request.param == "postgresql":
            url = stack.enter_context(schema(address()))
        store = SqlStore(url)
        stack.callback(store.close)

        def empty() -> SqlStore:
            everything = NOW + 1000 * HOUR
            store.bury(everything)
            store.prune(everything, 0)
            return store

        yield empty


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batches=steps, query=queries, since=moments, until=moments, most=st.integers(0, 8))
def test_a_database_answers_as_the_memory_does(
    emptied: Callable[[], SqlStore],
    batches: list[list[FullRecord]],
    query: Query,
    since: datetime,
    until: datetime,
    most: int,
) -> None:
    database, memory = emptied(), MemoryStore()
    marks = []
    for batch in batches:
        marks.append((database.changes(None, 1).last, memory.changes(None, 1).last))
        database.write(batch)
        memory.write(batch)
    for mine, theirs in marks:
        assert changed(database, mine) == changed(memory, theirs)
    assert all_pages(database, query) == all_pages(memory, query)
    assert database.failures(since, until, most + 1) == memory.failures(since, until, most + 1)
    close_enough(database.summary(since, until, 7), memory.summary(since, until, 7))
    assert database.prune(since, most) == memory.prune(since, most)
    assert all_pages(database, Query()) == all_pages(memory, Query())
