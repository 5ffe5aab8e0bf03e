"""`current_task().log`: the application's own structlog, however configured, with the task."""

import contextlib
import io
import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import structlog
from structlog.contextvars import bind_contextvars, get_contextvars

from fastapi_bgx import Bgx, CurrentTask, Settings, Task, current_task, processes
from tests import work
from tests.logs import Lines, logged, named, one
from tests.supervision import tasks_of

pytestmark = pytest.mark.anyio
QUIET = Settings(log_events=set())


@pytest.fixture(autouse=True)
def _fresh_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def here() -> CurrentTask:
    task = current_task()
    assert task is not None
    return task


async def run(function: Any, *args: Any, **options: Any) -> Task[Any]:
    """Run one task, and give it once it has succeeded."""
    tasks = await tasks_of(Bgx(QUIET))
    task = tasks.using(**options).add_task(function, *args)
    await tasks()
    assert task.error is None
    assert task.status == "succeeded"
    return task


def say() -> None:
    here().log.info("said", size=3)


async def say_later() -> None:
    await anyio.sleep(0)
    say()


@pytest.mark.parametrize("function", [say, say_later])
async def test_each_line_names_the_task(function: Any) -> None:
    with logged() as lines:
        task = await run(function, name="crm")
    line = one(lines, "said")
    assert line == {
        "event": "said",
        "log_level": "info",
        "task": "crm",
        "task_id": task.id,
        "attempt": 1,
        "size": 3,
    }


async def test_what_is_bound_in_the_context_is_in_its_lines_and_stays_as_it_was() -> None:
    contexts: list[dict[str, Any]] = []

    async def look() -> None:
        contexts.append(get_contextvars())
        here().log.info("said")
        contexts.append(get_contextvars())
        structlog.get_logger().info("said by others")

    with logged() as lines:
        bind_contextvars(request_id="r-1", task="somebody else's")
        await run(look)
    assert contexts == [{"request_id": "r-1", "task": "somebody else's"}] * 2
    line = one(lines, "said")
    assert (line["request_id"], line["task"]) == ("r-1", "look")
    assert "task_id" not in one(lines, "said by others")


async def test_it_is_one_logger_for_each_attempt() -> None:
    async def look() -> None:
        inside = here()
        first = inside.log
        assert inside.log is first
        task: Any = inside
        task.attempt += 1  # as the runner does
        assert inside.log is inside.log
        assert inside.log is not first
        inside.log.info("said")

    with logged() as lines:
        await run(look)
    assert one(lines, "said")["attempt"] == 2


# Configurations.


async def test_with_the_standard_library_the_logger_is_that_of_the_module(
    caplog: pytest.LogCaptureFixture,
) -> None:
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    with caplog.at_level(logging.INFO):
        task = await run(say)
    [record] = [each for each in caplog.records if each.getMessage() == "said"]
    assert record.name == __name__
    assert vars(record)["task_id"] == task.id


class Own(structlog.BoundLoggerBase):
    """A logger with a method of its own."""

    def shout(self, event: str, **fields: Any) -> Any:
        return self._proxy_to_logger("info", event.upper(), **fields)


async def test_a_class_of_the_application_s_own_has_its_methods() -> None:
    def shout() -> None:
        here().log.shout("said")

    with logged(wrapper_class=Own, context_class=OrderedDict) as lines:
        task = await run(shout)
    assert one(lines, "SAID")["task_id"] == task.id


@pytest.mark.parametrize("cached", [True, False])
async def test_a_logger_that_takes_no_name(cached: bool) -> None:
    output = io.StringIO()

    def factory() -> structlog.PrintLogger:
        return structlog.PrintLogger(output)

    structlog.configure(
        processors=[structlog.processors.KeyValueRenderer(key_order=["event"])],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=factory,
        cache_logger_on_first_use=cached,
    )
    task = await run(say)
    expected = f"event='said' task='say' task_id={task.id!r} attempt=1 size=3\n"
    assert output.getvalue() == expected


async def test_it_follows_a_configuration_that_comes_later() -> None:
    async def say_twice() -> None:
        log = here().log
        log.info("first")
        with logged() as inner:
            log.info("second")
        seen.extend(inner)

    seen: Lines = []
    with logged() as lines:
        await run(say_twice)
    assert [line["event"] for line in lines] == ["first"]
    assert [line["event"] for line in seen] == ["second"]


async def test_what_is_bound_to_it_is_bound_for_its_holder_alone() -> None:
    def bind() -> None:
        here().log.bind(file="a.png").info("one")
        here().log.info("other")

    with logged() as lines:
        await run(bind)
    assert one(lines, "one")["file"] == "a.png"
    assert "file" not in one(lines, "other")


# In a worker process.


async def test_the_task_in_a_worker_process_has_one_logger() -> None:
    facts = processes.TaskFacts(
        id="7", name="render", attempt=2, remaining=None, progress_path="nowhere"
    )
    inside = processes.WorkerTask(facts)
    with logged() as lines:
        inside.log.info("said")
    line = one(lines, "said")
    assert (line["task"], line["task_id"], line["attempt"]) == ("render", "7", 2)
    assert inside.log is inside.log


async def test_a_worker_process_writes_lines_of_its_task() -> None:
    with contextlib.redirect_stderr(io.StringIO()) as output, logged() as lines:
        bind_contextvars(request_id="r-1")
        task = await run(work.log_lines, executor="process", name="render")
    [line] = output.getvalue().splitlines()
    for part in "one line", "attempt=1", "request_id=r-1", "size=3", "task=render", task.id:
        assert part in line
    assert not named(lines, "one line"), "it is written there"
