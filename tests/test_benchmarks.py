"""The benchmarks can be run, keep their books, and report what they found. No time is judged here.

A peer whose package is not installed is left out, as in a run.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from fastapi import BackgroundTasks as StockBackgroundTasks

from fastapi_bgx import BackgroundTasks, Bgx, Settings, Task
from fastapi_bgx.background import upgrade
from tests.benchmarks import listeners, served, workloads
from tests.benchmarks.apps import CONTESTANTS, DEPENDS, INSTALL, QUIET_DEPENDS, QUIET_INSTALL
from tests.benchmarks.contestants import HAND_WRITTEN, NOBODY, STOCK, opened
from tests.benchmarks.lacks import LACKS
from tests.benchmarks.ledger import Gauge, Ledger
from tests.benchmarks.measure import Effort, Series, Unit, measure, measure_steps
from tests.benchmarks.recording import MEMORY, POSTGRESQL, SQLITE, Recording, recordings
from tests.benchmarks.report import BEGIN, END, PAGE, TIMES, as_data, render, replaced, update
from tests.benchmarks.targets import TARGETS, Figures
from tests.conftest import require

TINY = Effort(rounds=1, block_s=0.0001, quick=True)


@pytest.fixture(autouse=True)
def _structlog_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_a_round_measures_every_contestant() -> None:
    ticks: list[str] = []
    contestants = workloads.async_contestants()
    functions = {workloads.NO_OP: workloads.no_op}
    series = asyncio.run(
        workloads.measure_batches(functions, contestants, (2,), TINY, ticks.append)
    )
    assert [each.contestant for each in series] == [each.name for each in contestants]
    assert all(len(each.values) == TINY.rounds for each in series)
    assert len(ticks) == measure_steps(len(series), TINY)


def test_each_application_runs_the_tasks_that_it_accepts() -> None:
    names = [STOCK, HAND_WRITTEN, DEPENDS, INSTALL, QUIET_DEPENDS, QUIET_INSTALL]

    async def serve() -> list[str]:
        async with workloads.serving(names) as ready:
            return [served.name for served in ready]

    assert asyncio.run(serve()) == names


def test_what_a_contestant_does_not_do_is_said() -> None:
    assert {each.name for each in workloads.async_contestants()} <= set(LACKS)
    assert set(CONTESTANTS) <= set(LACKS)


def test_each_listener_is_measured_on_the_loop_and_in_all() -> None:
    ticks: list[str] = []
    known = [each for each in listeners.listening() if not isinstance(each, Recording)]
    found = asyncio.run(listeners.measure_each(known, (2,), 1, TINY, ticks.append))
    cases = [
        listeners.SUCCESS + workloads.batch_of(2),
        listeners.SUCCESS + listeners.CPU + workloads.batch_of(2),
        listeners.FAILURE + workloads.batch_of(1),
        listeners.FAILURE + listeners.CPU + workloads.batch_of(1),
    ]
    names = [each.name for each in known]
    assert [(each.case, each.contestant) for each in found] == [
        (case, name) for case in cases for name in names
    ]
    assert all(value > 0 for each in found for value in each.values)
    assert len(ticks) == measure_steps(2 * len(names), TINY)
    assert {each.name for each in listeners.listening()} <= set(listeners.DOES)


@pytest.mark.parametrize("place", [MEMORY, SQLITE, POSTGRESQL])
def test_a_measurement_of_records_ends_when_each_task_has_one(place: str) -> None:
    known = {each.name: each for each in recordings()}
    require(place in known, "PostgreSQL does not answer on 127.0.0.1:5432")
    recording = known[place]

    async def record() -> int:
        async with opened([recording]):
            await recording.run(workloads.no_op, 50, 2)
            await recording.settle()
            return recording.kept(limit=100)

    assert asyncio.run(record()) == 100


class Clocks:
    """In the place of the module `time`: both clocks stand still unless they are told."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def perf_counter(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.cpu


def test_the_time_of_work_that_was_left_to_a_thread_is_cpu_time_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = Clocks()
    monkeypatch.setattr("tests.benchmarks.measure.time", clocks)

    async def run(times: int) -> None:
        clocks.wall += 2 * times
        clocks.cpu += 1 * times

    async def settle() -> None:
        clocks.wall += 100
        clocks.cpu += 4

    unit = Unit(case="wall", cpu_case="cpu", contestant="", run=run, settle=settle, tasks=2)
    wall, cpu = asyncio.run(measure([unit], TINY, lambda what: None))
    assert (wall.case, wall.values) == ("wall", (1e6,)), "µs for each of two tasks"
    assert (cpu.case, cpu.values) == ("cpu", (2.5e6,))


# The report.


def some_series(ours: float) -> list[Series]:
    case = workloads.NO_OP + workloads.batch_of(10)
    return [
        Series(case=case, contestant=STOCK, unit="µs", values=(2.0, 4.0, 2.0)),
        Series(case=case, contestant=NOBODY, unit="µs", values=(ours, 2 * ours, ours)),
    ]


def test_ratios_are_taken_round_by_round() -> None:
    figures = Figures(some_series(1.0))
    case = workloads.NO_OP + workloads.batch_of(10)
    assert figures.ratios(case, NOBODY, STOCK) == (0.5, 0.5, 0.5)
    assert figures.ratio(case, NOBODY, HAND_WRITTEN) is None


@pytest.mark.parametrize(("ours", "met"), [(1.5, True), (1.6, False)])
def test_a_target_is_met_up_to_its_bound(ours: float, met: bool) -> None:
    target = TARGETS[0]
    assert target.values(Figures(some_series(ours))) == {"10": ours / 2}
    assert target.met(Figures(some_series(ours))) is met


def test_a_target_that_was_not_measured_is_not_met() -> None:
    assert TARGETS[0].met(Figures([])) is None


def test_the_tables_say_what_is_not_met_and_that_a_run_was_quick() -> None:
    text = render({"W1": as_data("W1", some_series(1.6), TINY)})
    assert "**not met**: a lean copy" in text
    assert "Not to be cited" in text
    assert LACKS[STOCK] in text


def test_listeners_are_held_against_the_task_that_nobody_hears_of() -> None:
    case = listeners.SUCCESS + workloads.batch_of(10)
    series = [
        Series(case=case, contestant=NOBODY, unit="µs", values=(2.0,)),
        Series(case=case, contestant=listeners.LOG, unit="µs", values=(8.0,)),
    ]
    text = render({"listeners": as_data("listeners", series, TINY)})
    assert "## What each listener costs" in text
    assert f"8.00: **4.00{TIMES}**" in text
    assert listeners.NOTE in text
    assert listeners.DOES[listeners.LOG] in text
    assert "| listeners |" not in text, "it has no targets"


def test_every_target_on_the_page_is_met_or_explained_by_a_full_run() -> None:
    text = (Path(__file__).parents[1] / "docs" / "explanation" / PAGE).read_text()
    assert all(f"| {target.workload} | {target.says} |" in text for target in TARGETS)
    assert "not explained yet" not in text
    assert "Not to be cited" not in text


def test_a_run_of_one_workload_keeps_the_figures_of_the_others(tmp_path: Path) -> None:
    page = tmp_path / PAGE
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    request = Series(case=workloads.REQUEST, contestant=STOCK, unit="µs", values=(70.0,))
    update(tmp_path, {"W3": as_data("W3", [request], TINY)})
    data = update(tmp_path, {"W1": as_data("W1", some_series(1.0), TINY)})
    assert list(data) == ["W1", "W3"]
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "70.0" in text


def test_a_page_without_markers_is_not_overwritten() -> None:
    with pytest.raises(ValueError, match="the page has no"):
        replaced("a page", "tables")


def test_the_summary_of_wrk_is_read() -> None:
    output = "  12345 requests in 2.01s, 1.23MB read\nRequests/sec:   6141.79\n"
    assert served.parse_wrk(output) == (12345, 2.01)


@pytest.mark.parametrize(
    "line", ["Non-2xx or 3xx responses: 3", "Socket errors: connect 0, read 9"]
)
def test_errors_that_wrk_counts_end_the_run(line: str) -> None:
    with pytest.raises(served.Failed):
        served.parse_wrk(f"  12345 requests in 2.01s, 1.23MB read\n  {line}\n")


# The books of the soak.


async def no_op(number: int) -> None:
    """A task that does not say that it was called."""


@pytest.fixture
def ledger() -> Ledger:
    """A ledger that hears what the library has to say."""
    ledger = Ledger()
    structlog.configure(processors=[ledger.hear])
    return ledger


def supervised() -> BackgroundTasks:
    return upgrade(StockBackgroundTasks(), Bgx(Settings()).runners.current(), at_once=False)


async def run_one(ledger: Ledger, times: int) -> None:
    """Run a task whose function says so many times that it was called."""

    async def work(number: int) -> None:
        for _ in range(times):
            with ledger.call(number):
                pass

    tasks = supervised()
    ledger.add(tasks, work)
    await tasks()
    ledger.settle()


def test_books_that_are_right_have_no_problem(ledger: Ledger) -> None:
    asyncio.run(run_one(ledger, 1))
    assert ledger.problems == []
    assert ledger.totals["added"] == ledger.totals["task.succeeded"] == 1


@pytest.mark.parametrize("times", [0, 2])
def test_a_task_that_was_not_called_once_is_a_problem(ledger: Ledger, times: int) -> None:
    asyncio.run(run_one(ledger, times))
    assert f"was called {times} times" in ledger.problems[0]


def test_a_task_that_never_ended_is_a_problem(ledger: Ledger) -> None:
    async def add() -> None:
        tasks = supervised()
        ledger.add(tasks, no_op)
        ledger.settle()
        tasks.drop("the test is over")

    asyncio.run(add())
    assert "has 0 final events" in ledger.problems[0]


def test_a_second_end_is_a_problem(ledger: Ledger) -> None:
    async def run() -> None:
        tasks = supervised()
        ledger.add(tasks, no_op)
        await tasks()
        (task,) = tasks.tasks
        assert isinstance(task, Task)
        with pytest.raises(structlog.DropEvent):
            ledger.hear(None, "info", {"event": "task.failed", "task_id": task.id})
        ledger.settle()

    asyncio.run(run())
    assert "has 2 final events" in ledger.problems[0]


def test_an_end_without_a_task_is_a_problem(ledger: Ledger) -> None:
    with pytest.raises(structlog.DropEvent):
        ledger.hear(None, "info", {"event": "task.failed", "task_id": "nobody-1"})
    ledger.settle()
    assert "was never added" in ledger.problems[0]


def test_one_more_than_the_limit_is_a_problem(ledger: Ledger) -> None:
    gauge = Gauge("smtp", 1)
    with ledger.call(1, gauge):
        assert ledger.problems == []
        with ledger.call(2, gauge):
            assert ledger.problems == ["2 held smtp, which has 1 slots"]
    assert gauge.peak == 2
