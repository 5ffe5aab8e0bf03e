"""Options: where they can be given, which of them wins, and which are refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fastapi_bgx import (
    BackgroundTasks,
    Bgx,
    Limit,
    Settings,
    Task,
    TaskOptions,
    Tasks,
    UnknownLimit,
    UnknownOption,
    current_task,
    task_options,
)


def added(settings: Settings, add: Callable[[BackgroundTasks], Task[Any]]) -> Task[Any]:
    """The task that a route adds, after the request."""
    bgx, found = Bgx(settings), []
    app = FastAPI()
    bgx.install(app)

    @app.get("/")
    async def route(tasks: Tasks) -> None:
        found.append(add(tasks))

    assert TestClient(app).get("/").status_code == 200
    return found[0]


def timeout() -> float | None:
    """The timeout of the running task, in whole seconds."""
    task = current_task()
    assert task is not None
    left = task.remaining()
    return None if left is None else float(round(left))


@task_options(timeout=200)
def attached() -> float | None:
    return timeout()


def plain() -> float | None:
    return timeout()


class Mailer:
    @task_options(timeout=200)
    def send(self) -> float | None:
        return timeout()


class Callback:
    @task_options(timeout=200)
    def __call__(self) -> float | None:
        return timeout()


def value(settings: Settings, add: Callable[[BackgroundTasks], Task[Any]]) -> Any:
    """What the task that a route adds returned."""
    outcome = added(settings, add).outcome
    assert outcome is not None
    return outcome.value


# Which wins.

BY_NAME = {"attached": TaskOptions(timeout=300), "plain": TaskOptions(timeout=300)}


def test_without_options_the_settings_decide() -> None:
    assert value(Settings(), lambda tasks: tasks.add_task(plain)) is None
    assert value(Settings(timeout=100), lambda tasks: tasks.add_task(plain)) == 100


def test_options_of_the_function_win_over_the_settings() -> None:
    assert value(Settings(timeout=100), lambda tasks: tasks.add_task(attached)) == 200


def test_options_by_name_win_over_those_of_the_function() -> None:
    settings = Settings(timeout=100, tasks=BY_NAME)
    assert value(settings, lambda tasks: tasks.add_task(attached)) == 300
    assert value(settings, lambda tasks: tasks.add_task(plain)) == 300


def test_options_of_the_call_win_over_all() -> None:
    settings = Settings(timeout=100, tasks=BY_NAME)
    assert value(settings, lambda tasks: tasks.using(timeout=400).add_task(attached)) == 400


def test_a_variable_changes_the_timeout_of_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_TASKS__ATTACHED__TIMEOUT", "300")
    assert value(Settings(), lambda tasks: tasks.add_task(attached)) == 300


def test_a_variable_changes_the_timeout_of_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGX_TASKS__MAILER_SEND__TIMEOUT", "300")
    assert value(Settings(), lambda tasks: tasks.add_task(Mailer().send)) == 300


def test_none_means_no_timeout_wherever_it_is_given() -> None:
    endless = TaskOptions(timeout=None)
    assert value(Settings(timeout=None), lambda tasks: tasks.add_task(plain)) is None
    assert value(Settings(tasks={"plain": endless}, timeout=9), lambda t: t.add_task(plain)) is None
    assert value(Settings(), lambda tasks: tasks.using(timeout=None).add_task(attached)) is None

    @task_options(timeout=None)
    def function() -> float | None:
        return timeout()

    assert value(Settings(timeout=100), lambda tasks: tasks.add_task(function)) is None


def test_an_option_that_is_left_out_is_unchanged() -> None:
    settings = Settings(tasks={"attached": TaskOptions(slow_after=7)}, queue_timeout=8)
    task = added(settings, lambda tasks: tasks.using(name="attached").add_task(attached))
    plan = task.plan
    assert (plan.timeout, plan.slow_after, plan.queue_timeout) == (200, 7, 8)


def test_a_view_of_a_view_adds_options() -> None:
    settings = Settings()
    task = added(
        settings, lambda t: t.using(timeout=1, slow_after=2).using(timeout=3).add_task(plain)
    )
    assert (task.plan.timeout, task.plan.slow_after) == (3, 2)


def test_options_of_a_view_are_not_those_of_the_list() -> None:
    def add(tasks: BackgroundTasks) -> Task[Any]:
        tasks.using(timeout=100)
        return tasks.add_task(plain)

    assert value(Settings(), add) is None


def test_options_of_one_call_are_not_those_of_the_next() -> None:
    found: list[Task[Any]] = []

    def add(tasks: BackgroundTasks) -> Task[Any]:
        found.append(tasks.using(timeout=100).add_task(plain))
        found.append(tasks.add_task(plain))
        found.append(tasks.using(timeout=300).add_task(plain))
        return found[0]

    added(Settings(), add)
    assert [task.plan.timeout for task in found] == [100, None, 300]


def test_the_settings_are_those_of_the_name_that_the_call_gave() -> None:
    settings = Settings(tasks={"crm": TaskOptions(timeout=300), "plain": TaskOptions(timeout=9)})
    assert value(settings, lambda tasks: tasks.using(name="crm").add_task(plain)) == 300


# What options are attached to.


def test_task_options_gives_the_very_same_function() -> None:
    def function() -> None: ...

    assert task_options(timeout=3)(function) is function


def test_a_function_with_options_is_called_as_before() -> None:
    @task_options(timeout=3)
    def function(number: int) -> int:
        return number + 1

    assert function(1) == 2


@pytest.mark.parametrize(
    "func",
    [partial(attached), partial(partial(attached)), Mailer().send, Callback()],
    ids=["partial", "partial of a partial", "method", "callable object"],
)
def test_options_are_found_through(func: Callable[[], Any]) -> None:
    assert value(Settings(), lambda tasks: tasks.add_task(func)) == 200


# What is refused.


def test_a_misspelt_option_is_refused_with_a_suggestion() -> None:
    wrong: Any = {"timout": 3}
    with pytest.raises(
        UnknownOption, match=r"using\(\) got an unknown option 'timout'; did you mean 'timeout'\?"
    ):
        BackgroundTasks().using(**wrong)
    with pytest.raises(UnknownOption, match=r"task_options\(\) got an unknown option 'timout'"):
        task_options(**wrong)


def test_an_option_like_no_other_is_refused_with_all_names() -> None:
    wrong: Any = {"colour": 3}
    with pytest.raises(TypeError, match=f"known: {', '.join(TaskOptions.model_fields)}$"):
        BackgroundTasks().using(**wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": -1}, "timeout: Input should be greater than 0, got -1"),
        ({"timeout": 0}, "timeout: Input should be greater than 0, got 0"),
        ({"timeout": True}, "timeout: Input should be a number, got True"),
        ({"timeout": [1]}, "timeout: Input should be a valid number, got [1]"),
        ({"queue_timeout": -1}, "queue_timeout: Input should be greater than 0, got -1"),
        ({"slow_after": -1}, "slow_after: Input should be greater than 0, got -1"),
        ({"unique": 3}, "unique: Input should be a text that is not empty, or a function"),
        ({"unique": ""}, "unique: Input should be a text that is not empty, or a function"),
        ({"name": ""}, "name: String should have at least 1 character, got ''"),
        ({"name": 3}, "name: Input should be a valid string, got 3"),
        ({"limit": 3}, "limit: Input should be the name of a limit, or a Limit, got 3"),
        ({"executor": "fork"}, "executor: Input should be 'async', 'thread' or 'process'"),
        ({"detached": "later"}, "detached: Input should be a valid boolean"),
        ({"timeout": -1, "name": ""}, "timeout: Input should be greater than 0, got -1"),
        ({"timeout": -1, "name": ""}, "name: String should have at least 1 character, got ''"),
    ],
)
def test_a_wrong_value_is_refused_by_name(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^using\(\): ") as caught:
        BackgroundTasks().using(**options)
    assert message in str(caught.value)
    with pytest.raises(ValueError, match=r"^task_options\(\): "):
        task_options(**options)


def test_a_limit_that_does_not_exist_is_refused_in_the_route() -> None:
    def add(tasks: BackgroundTasks) -> Task[Any]:
        with pytest.raises(UnknownLimit, match=r"limit 'smpt' is not configured \(known: smtp\)"):
            tasks.using(limit="smpt").add_task(plain)
        return tasks.add_task(plain)

    added(Settings(limits={"smtp": 1}), add)


@pytest.mark.parametrize("slots", [0, -1, True, 1.5, "2"])
def test_the_slots_of_a_limit_are_a_number_from_1_on(slots: Any) -> None:
    with pytest.raises(ValueError, match=r"Limit\('tenant'\) needs at least 1 slot, got"):
        Limit("tenant", slots)


def test_a_limit_needs_a_name() -> None:
    with pytest.raises(ValueError, match="a Limit needs a name"):
        Limit("", 1)


def test_task_options_of_the_settings_are_frozen() -> None:
    options: Any = TaskOptions(timeout=3)
    with pytest.raises(ValueError, match="frozen"):
        options.timeout = 4
