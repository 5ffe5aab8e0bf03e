"""The log lines of a task, as its listeners hear them: by its own logger, and by `keep_lines`."""

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from fastapi_bgx import Bgx, Settings, Task, current_task, keep_lines
from fastapi_bgx.events import Event, TaskLogged
from fastapi_bgx.loglines import KeptChain, text_of_line
from tests.logs import logged, named
from tests.supervision import tasks_of

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _fresh_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class Heard:
    """A listener that logs what it hears, which must not be heard again."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def hears(self, event: type[Event]) -> bool:
        return event is TaskLogged

    def changed(self) -> bool:
        return False

    def __call__(self, event: Event) -> None:
        assert isinstance(event, TaskLogged)
        self.lines.append((event.line_level, event.text))
        event.task.log.info("heard")
        structlog.get_logger().info("heard, too")


async def run(function: Any, *, heard: bool = True) -> tuple[Task[Any], list[tuple[str, str]]]:
    bgx, listener = Bgx(Settings(log_events=set())), Heard()
    if heard:
        bgx.listen(listener)
    tasks = await tasks_of(bgx)
    task = tasks.add_task(function)
    await tasks()
    assert task.error is None
    return task, listener.lines


def say() -> None:
    task = current_task()
    assert task is not None
    assert task.log is task.log
    task.log.info("first", size=3, text="two words", word="one")
    task.log.bind(user="ann").warning("second")
    structlog.get_logger().error("elsewhere", number=4)


async def test_the_lines_of_the_logger_of_a_task_are_heard_in_its_thread() -> None:
    with logged() as lines:
        _, heard = await run(say)
    assert heard == [
        ("info", 'first size=3 text="two words" word=one'),
        ("warning", "second user=ann"),
    ]
    assert len(named(lines, "first")) == 1


async def test_with_the_processor_every_line_is_heard_once() -> None:
    with logged(keep_lines):
        _, heard = await run(say)
    assert [text.split()[0] for _, text in heard] == ["first", "second", "elsewhere"]
    assert heard[2] == ("error", "elsewhere number=4")


async def test_where_nobody_hears_the_logger_is_the_plain_one() -> None:
    with logged(keep_lines) as lines:
        _, heard = await run(say, heard=False)
        structlog.get_logger().info("outside of every task")
    assert heard == []
    assert len(lines) == 4


async def test_what_a_processor_hides_is_hidden_and_what_it_drops_is_not_kept() -> None:
    def hide(_: Any, __: str, line: Any) -> Any:
        if line["event"] == "second":
            raise structlog.DropEvent
        return line | {"size": "***"}

    with logged(hide):
        _, heard = await run(say)
    assert heard == [("info", 'first size=*** text="two words" word=one')]


async def test_the_events_of_the_library_are_not_the_lines_of_a_task() -> None:
    def work() -> None:
        structlog.get_logger().warning("task.slow")

    with logged(keep_lines):
        _, heard = await run(work)
    assert heard == []


def test_the_chain_is_that_of_the_configuration_of_now() -> None:
    capture = LogCapture()
    structlog.configure(processors=[capture])
    chain = KeptChain(lambda: None)
    assert len(chain) == 2
    assert chain[1] is capture
    assert chain[1:] == [capture]
    structlog.configure(processors=[])
    assert len(list(chain)) == 1


def test_a_line_is_one_short_text() -> None:
    error = ValueError("bad")
    try:
        raise error
    except ValueError:
        assert text_of_line({"event": "e", "exc_info": True}) == "e\nValueError: bad"
        info = sys.exc_info()
    assert text_of_line({"event": "e", "exc_info": info}) == "e\nValueError: bad"
    assert text_of_line({"event": "e", "exc_info": error}) == "e\nValueError: bad"
    assert text_of_line({"event": "e", "exc_info": True}) == "e"
    assert text_of_line({"event": "e", "exception": "Traceback"}) == "e\nTraceback"
    assert text_of_line({"event": "%s of %s", "positional_args": (1, 2)}) == "1 of 2"
    assert text_of_line({"event": "%d", "positional_args": ("x",)}) == '%d ["x"]'
    assert text_of_line({"event": "e", "_hidden": 1, "level": "info", "a": None}) == "e a=null"
    assert len(text_of_line({"event": "e" * 5000, "a": 1})) == 2000


async def test_the_loggers_of_the_standard_library_are_heard_too() -> None:
    def work() -> None:
        task = current_task()
        assert task is not None
        task.log.info("%d files", 3)
        task.log.debug("not at this level")

    with logged(
        structlog.stdlib.filter_by_level,
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    ):
        logging.getLogger(__name__).setLevel(logging.INFO)
        _, heard = await run(work)
    assert heard == [("info", "3 files")]
