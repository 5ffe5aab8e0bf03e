"""Pure parts of the dashboard: words for people, filters of a URL, bars of a timeline, plots."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from starlette.datastructures import QueryParams

from fastapi_bgx.dashboard import graphs
from fastapi_bgx.dashboard.filters import BadFilter, Filters, read_filters, read_span
from fastapi_bgx.dashboard.timeline import WIDTH, Span, timeline
from fastapi_bgx.dashboard.views import (
    NOTHING,
    Done,
    ago,
    clock,
    done_of,
    duration,
    exact,
    iso,
    many,
    share,
    step_word,
    sum_up,
    took,
    traceback_lines,
    waited,
    why,
)
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import Answer, FullRecord, Step
from fastapi_bgx.stores.summaries import summarise

NOW = datetime(2026, 3, 14, 3, 7, 21, 123_456, tzinfo=UTC)


def before(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def record(status: Status = Status.RUNNING, added: float = 10, **more: object) -> FullRecord:
    return FullRecord.model_validate(
        {
            "id": "p-1",
            "name": "mail",
            "status": status,
            "function": "shop.mail",
            "executor": "async",
            "process": "p",
            "added_at": before(added),
            **more,
        }
    )


# Words.


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, NOTHING),
        (0, "0 ms"),
        (0.00049, "0.5 ms"),
        (0.18, "180 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (1.899, "1.90 s"),
        (9.96, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (125, "2 min 5 s"),
        (3_600, "1 h"),
        (11_520, "3 h 12 min"),
        (183_600, "2 d 3 h"),
        (-2, "-2.00 s"),
    ],
)
def test_a_duration_has_the_digits_that_matter(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "just now"),
        (-0.4, "just now"),
        (8.9, "8 s ago"),
        (61, "1 min ago"),
        (7_300, "2 h ago"),
        (200_000, "2 d ago"),
        (-540, "in 9 min"),
    ],
)
def test_a_moment_is_told_from_now(seconds: float, words: str) -> None:
    assert ago(before(seconds), NOW) == words


def test_times_of_day_are_utc_and_have_the_day_when_it_is_another() -> None:
    assert clock(before(1), NOW) == "03:07:20"
    assert clock(before(4 * 3_600), NOW) == "13 Mar 23:07"
    assert clock(NOW.replace(year=2025), NOW) == "14 Mar 2025"
    east = NOW.astimezone(datetime.strptime("+0500", "%z").tzinfo)
    assert clock(east, NOW) == "03:07:21"
    assert exact(east) == "2026-03-14 03:07:21.123 UTC"
    assert iso(east) == "2026-03-14T03:07:21.123Z"


def test_what_has_no_moment_says_so() -> None:
    assert {ago(None, NOW), clock(None, NOW), exact(None)} == {NOTHING}


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (0, 0, NOTHING),
        (0, 10, "0 %"),
        (10, 10, "100 %"),
        (1, 3, "33 %"),
        (1, 40, "2.5 %"),
        (1, 10_000, "< 0.1 %"),
        (9_999, 10_000, "> 99.9 %"),
    ],
)
def test_a_share_never_hides_the_last_failure(part: int, whole: int, words: str) -> None:
    assert share(part, whole) == words


def test_numbers_agree_with_their_nouns() -> None:
    assert (many(1, "task"), many(1_200, "task")) == ("1 task", "1,200 tasks")
    assert many(2, "entry", "entries") == "2 entries"


def test_a_step_names_its_attempt() -> None:
    step = Step(at=NOW, kind="failed", attempt=2)
    assert step_word(step) == "attempt 2 failed"
    assert step_word(step.model_copy(update={"kind": "blocked_loop"})) == "blocked the loop"


def test_what_runs_has_run_up_to_now() -> None:
    running = record(started_at=before(4), queued_s=6.0)
    assert took(running, NOW) == 4
    assert waited(running, NOW) == 6
    assert took(record(Status.QUEUED), NOW) is None
    assert waited(record(Status.QUEUED), NOW) == 10
    assert waited(record(Status.REJECTED), NOW) is None
    assert took(record(Status.FAILED, duration_s=2.0), NOW) == 2


def test_why_is_the_error_or_the_reason_or_the_note() -> None:
    failed = record(Status.FAILED, error_type="smtplib.SMTPServerDisconnected")
    assert why(failed) == "SMTPServerDisconnected"
    assert why(failed.model_copy(update={"error_message": "gone"})).endswith("Disconnected: gone")
    assert why(record(Status.CANCELLED, reason="shutdown")) == "shutdown"
    assert why(record(note="half way")) == "half way"
    healed = record(Status.SUCCEEDED, error_type="OSError")
    assert why(healed) == ""


def test_a_traceback_tells_own_code_from_that_of_libraries() -> None:
    text = (
        "Traceback (most recent call last):\n"
        '  File "/srv/shop/mail.py", line 3, in send\n'
        "    connect()\n"
        '  File "/usr/lib/python3.13/smtplib.py", line 1, in connect\n'
        "    raise OSError\n"
        "OSError: gone\n"
        "\n"
        "During handling of the above exception, another exception occurred:\n"
    )
    kinds = [line.kind for line in traceback_lines(text)]
    assert kinds == ["head", "own", "code", "library", "library", "error", "library", "head"]


# What was done.


def test_what_was_done_is_one_sentence_and_fits_in_a_url() -> None:
    answers = [
        Answer(done=True),
        Answer(done=False, detail="it has ended already: failed"),
        Answer(done=False, detail="its process did not answer"),
        None,
    ]
    done = sum_up("cancel", answers)
    assert done.sentence() == (
        "1 task asked to stop, 1 had ended already, 1 not found, 1 could not be asked to stop."
    )
    assert done_of(done.code()) == done
    assert Done("retry", 3).sentence() == "3 tasks run again."


@pytest.mark.parametrize(
    "code", ["", "cancel", "cancel.1.2.3", "call +1 555.1.2.3.4", "retry.1.2.3.x", "retry.1.2.3.²"]
)
def test_no_url_puts_words_of_its_own_on_a_page(code: str) -> None:
    assert done_of(code) is None


# Filters.


def test_filters_become_a_query_and_a_link() -> None:
    filters = read_filters(
        QueryParams(
            "status=failed&status=timed_out&text=+bank+&within=24h&ended=1h&overrunning=1&name="
        )
    )
    assert filters == Filters(
        status=(Status.FAILED, Status.TIMED_OUT),
        text="bank",
        within="24h",
        ended="1h",
        overrunning="1",
    )
    query = filters.query(NOW)
    assert query.since == before(86_400)
    assert query.ended_since == before(3_600)
    assert (query.text, query.name, query.overrunning) == ("bank", None, True)
    assert read_filters(QueryParams(filters.link()[1:])) == filters
    assert "cursor=abc" in filters.link(cursor="abc")
    assert filters.narrow
    assert not Filters(cursor="abc").narrow


def test_times_without_a_zone_are_utc() -> None:
    filters = read_filters(
        QueryParams({"since": "2026-03-14T03:00", "until": "2026-03-14T03:00+01"})
    )
    query = filters.query(NOW)
    assert query.since == datetime(2026, 3, 14, 3, tzinfo=UTC)
    assert query.until == datetime(2026, 3, 14, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("status=nope", "There is no status “nope”"),
        ("within=1y", "There is no span “1y”"),
        ("ended=1y", "There is no span “1y”"),
        ("since=yesterday", "“yesterday” (from) is no time"),
        ("until=0001-01-01T00:00%2B14:00", "(to) is no time"),
        ("text=%00", "“text” has a character"),
        ("name=" + "x" * 201, "“name” is longer than 200 characters"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(query: str, problem: str) -> None:
    with pytest.raises(BadFilter) as raised:
        read_filters(QueryParams(query))
    (told,) = raised.value.problems
    assert problem in told


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(BadFilter) as raised:
        read_filters(QueryParams("status=nope&within=1y"))
    assert len(raised.value.problems) == 2


def test_a_page_has_a_span_also_when_none_is_asked_for() -> None:
    assert read_span(QueryParams(""), "24h") == "24h"
    assert read_span(QueryParams("within=7d"), "24h") == "7d"
    with pytest.raises(BadFilter):
        read_span(QueryParams("within=never"), "24h")


# Timelines.


def labels(spans: list[Span]) -> list[tuple[str, float]]:
    return [(span.label, span.seconds) for span in spans]


def started(attempt: int, ago: float) -> Step:
    return Step(at=before(ago), kind="started", attempt=attempt)


def failed(attempt: int, ago: float) -> Step:
    return Step(at=before(ago), kind="failed", attempt=attempt)


def test_a_task_that_waits_is_one_open_bar() -> None:
    (span,) = timeline(record(Status.QUEUED), NOW)
    assert (span.label, span.seconds, span.open) == ("Waits to start", 10, True)
    assert (span.x, span.width) == (0, WIDTH)


def test_retries_are_bars_with_the_waits_between() -> None:
    spans = timeline(
        record(
            Status.FAILED,
            started_at=before(9),
            ended_at=before(1),
            steps=[started(1, 9), failed(1, 7), started(2, 3), failed(2, 1)],
        ),
        NOW,
    )
    assert labels(spans) == [
        ("Waited to start", 1),
        ("Attempt 1 failed", 2),
        ("Waited to retry", 4),
        ("Attempt 2 failed", 2),
    ]
    assert [span.kind for span in spans] == ["wait", "failed", "wait", "failed"]
    assert spans[-1].x + spans[-1].width == pytest.approx(WIDTH, abs=0.2)


def test_a_task_that_will_retry_waits_up_to_now() -> None:
    spans = timeline(
        record(Status.RETRYING, started_at=before(9), steps=[started(1, 9), failed(1, 7)]), NOW
    )
    assert labels(spans)[-1] == ("Waits to retry", 7)
    assert spans[-1].open


def test_a_running_attempt_is_open_and_a_timeout_is_a_failed_one() -> None:
    running = timeline(record(started_at=before(9), steps=[started(1, 9)]), NOW)
    assert (running[-1].label, running[-1].open) == ("Attempt 1", True)
    late = record(
        Status.TIMED_OUT,
        started_at=before(9),
        ended_at=before(4),
        overrunning=True,
        steps=[started(1, 9)],
    )
    assert labels(timeline(late, NOW))[1:] == [
        ("Attempt 1 failed", 5),
        ("Its function still runs", 4),
    ]


def test_a_record_without_steps_has_a_timeline_too() -> None:
    done = record(Status.SUCCEEDED, attempt=3, started_at=before(9), ended_at=before(2))
    assert labels(timeline(done, NOW)) == [("Waited to start", 1), ("Attempt 3", 7)]
    lost = record(steps=[started(1, 9), started(3, 4)], started_at=before(9))
    assert labels(timeline(lost, NOW))[1:] == [("Attempt 1", 5), ("Attempt 3", 4)]


def test_a_clock_that_was_set_back_breaks_no_timeline() -> None:
    odd = record(Status.SUCCEEDED, added=0, started_at=before(5), ended_at=before(9))
    assert all(span.seconds >= 0 and span.width > 0 for span in timeline(odd, NOW))
    ended_before = record(Status.FAILED, added=0, ended_at=before(0), overrunning=False)
    assert labels(timeline(ended_before, NOW)) == [("Waited to start", 0)]


# Plots.


def test_a_plot_and_its_table_tell_the_same() -> None:
    records = [
        record(Status.FAILED, ended_at=before(30), queued_s=0.0, duration_s=2.0),
        record(Status.SUCCEEDED, ended_at=before(30), queued_s=0.0, duration_s=0.0),
        record(Status.REJECTED, ended_at=before(100), queued_s=0.0),
    ]
    summary = summarise(records, {}, before(120), NOW, 2)
    ended = graphs.throughput(summary)
    assert json.loads(ended.data)["series"] == [[1, 2], [0, 1]]
    assert [cells for _, cells in ended.rows] == [("2", "1"), ("1", "0")]
    ran = graphs.durations(summary)
    assert json.loads(ran.data)["series"] == [[None, 0.0001], [None, 2.0], [None, 2.0]]
    assert [cells for _, cells in ran.rows] == [("0 ms", "2.00 s", "2.00 s")]
