"""Shutdown is bounded and reported, on a real uvicorn with real signals."""

import fcntl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import NamedTuple

import httpx
import pytest

from fastapi_bgx.signals import SAME_STOP_SECONDS
from tests.server.conftest import Serve, Server, serving, uvicorn

ENDED_BY_SIGTERM = -15  # uvicorn raises the signal again once it has shut down


def names(refs: list[str]) -> list[str]:
    return sorted(ref.split()[0] for ref in refs)


# Tasks that never end: the server stops after the grace period all the same.


class Stop(NamedTuple):
    server: Server
    code: int
    seconds: float


INLINE = ["blocked", "crunching", "endless", "stubborn"]
DETACHED = ["blocked", "endless", "stubborn"]
WAITING = ["held_thread", "held_thread"]
ALL = sorted(INLINE + DETACHED + WAITING)
GRACE = 0.3


@pytest.fixture(scope="module")
def stop(loop: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stop]:
    """A server that was stopped while tasks of every kind ran, and others waited for a slot."""
    directory = tmp_path_factory.mktemp("stop")
    settings = {"BGX_DRAIN_TIMEOUT": str(GRACE), "BGX_MAX_THREADS": "2"}
    with serving(uvicorn(loop=loop), directory, **settings) as server:
        for task in INLINE:
            server.add(task, executor="process" if task == "crunching" else None)
        for task in DETACHED:
            server.add(task, detached=True)
        server.add("held_thread")  # for want of threads these two stay in the backlog
        server.add("held_thread", detached=True)
        server.all_logs(len(INLINE + DETACHED), "task.started")
        server.until((directory / "crunching").exists, "there is no worker process")
        began = time.monotonic()
        server.send(SIGTERM)
        code = server.end()
        yield Stop(server, code, time.monotonic() - began)


def test_the_server_ends_soon_though_tasks_never_end(stop: Stop) -> None:
    assert stop.code == ENDED_BY_SIGTERM
    assert stop.seconds < GRACE + 4  # it gives functions 1 s to end, and uvicorn looks now and then


def test_every_task_that_is_cancelled_has_an_event_with_the_reason(stop: Stop) -> None:
    cancelled = stop.server.logged("task.cancelled", reason="shutdown", level="warning")
    assert sorted(log["task"] for log in cancelled) == ALL


def test_one_report_names_what_was_cancelled(stop: Stop) -> None:
    report = stop.server.report()
    assert report["finished"] == 0
    assert names(report["cancelled"]) == ALL
    assert report["duration_s"] >= GRACE


def test_the_report_names_the_ids(stop: Stop) -> None:
    ids = {log["task_id"] for log in stop.server.logged("task.queued")}
    assert {ref.split()[1] for ref in stop.server.report()["cancelled"]} == ids


def test_a_thread_that_goes_on_is_reported(stop: Stop) -> None:
    assert names(stop.server.report()["in_thread"]) == ["blocked", "blocked"]


def test_a_function_that_swallows_its_cancellation_is_reported_as_stuck(stop: Stop) -> None:
    assert stop.server.logged("stubborn.refuses")
    assert names(stop.server.report()["stuck"]) == ["stubborn", "stubborn"]
    overran = stop.server.logged("task.overran", task="stubborn", ended=False)
    assert len(overran) == 2


def test_a_worker_process_is_killed(stop: Stop) -> None:
    with (stop.server.directory / "crunching").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the worker held it


def test_what_waits_in_the_backlog_is_not_started_any_more(stop: Stop) -> None:
    assert not stop.server.logged("held_thread.starts")
    assert len(stop.server.logged("task.cancelled", task="held_thread", attempt=0)) == 2


def test_the_lifespan_of_the_application_ends_after_the_drain(stop: Stop) -> None:
    events = [log["event"] for log in stop.server.logs]
    assert events.index("bgx.drained") < events.index("lifespan.ends")


def test_the_handlers_of_the_server_are_back_when_the_lifespan_ends(stop: Stop) -> None:
    assert stop.server.log("lifespan.ends")["handler"] == "Server.handle_exit"


# Tasks that end within the grace period.


class Wait(NamedTuple):
    server: Server
    code: int
    late: httpx.Response


@pytest.fixture(scope="module")
def wait(loop: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wait]:
    """A server that was stopped with tasks that end once it waits for them."""
    directory = tmp_path_factory.mktemp("wait")
    with (
        serving(uvicorn(loop=loop), directory, BGX_DRAIN_TIMEOUT="30") as server,
        httpx.Client(base_url=server.client.base_url, trust_env=False) as keep_alive,
        ThreadPoolExecutor() as pool,
    ):
        server.add("held")
        server.add("held_thread")
        server.add("held", detached=True)
        server.client.post("/add-chain").raise_for_status()
        keep_alive.get("/up").raise_for_status()  # its connection stays open
        late = pool.submit(server.client.post, "/add-late/brief")
        server.all_logs(3, "held.starts")
        server.log("held_thread.starts")
        server.log("add_late.starts")
        server.send(SIGTERM)
        server.line("Waiting for connections to close")
        server.release()
        yield Wait(server, server.end(), late.result())


def test_tasks_that_end_within_the_grace_period_are_waited_for(wait: Wait) -> None:
    assert wait.code == ENDED_BY_SIGTERM
    assert len(wait.server.logged("held.ends")) == 3
    assert len(wait.server.logged("held_thread.ends")) == 1
    assert not wait.server.logged("task.cancelled")


def test_the_server_does_not_wait_longer_than_its_tasks(wait: Wait) -> None:
    report = wait.server.report()
    assert report["cancelled"] == report["in_thread"] == report["stuck"] == []
    assert report["finished"] == 6
    assert report["duration_s"] < 15


def test_a_request_under_way_may_add_a_task_after_the_signal(wait: Wait) -> None:
    assert wait.late.status_code == 200
    assert wait.server.logged("brief.ends", id=wait.late.json())


def test_a_running_task_may_add_a_task_after_the_signal(wait: Wait) -> None:
    assert len(wait.server.logged("task.succeeded", task="brief")) == 2


# In a hurry.


def test_a_second_sigterm_cancels_at_once(serve: Serve) -> None:
    server = serve(BGX_DRAIN_TIMEOUT="60")
    server.add("endless")
    server.add("endless", detached=True)
    server.send(SIGTERM)
    server.line("Waiting for background tasks")
    time.sleep(SAME_STOP_SECONDS)
    assert not server.logged("task.cancelled")
    server.send(SIGTERM)
    assert server.end() == ENDED_BY_SIGTERM
    assert names(server.report()["cancelled"]) == ["endless", "endless"]


def test_a_second_sigint_for_which_uvicorn_skips_the_lifespan_still_reports(
    serve: Serve, loop: str
) -> None:
    server = serve(loop=loop, BGX_DRAIN_TIMEOUT="60")
    server.add("endless")
    server.add("blocked")
    server.add("endless", detached=True)
    server.log("blocked.starts")
    server.send(SIGINT)
    server.line("Waiting for background tasks")
    server.send(SIGINT)
    server.end()
    assert not server.logged("lifespan.ends")
    assert names(server.report()["cancelled"]) == ["blocked", "endless", "endless"]
    assert names(server.report()["in_thread"]) == ["blocked"]


def test_the_graceful_timeout_of_uvicorn_may_be_shorter(serve: Serve) -> None:
    server = serve("--timeout-graceful-shutdown", "1", BGX_DRAIN_TIMEOUT="60")
    server.add("endless")
    server.add("blocked")
    server.log("blocked.starts")
    server.send(SIGTERM)
    assert server.end() == ENDED_BY_SIGTERM
    reasons = {log["task"]: log["reason"] for log in server.logged("task.cancelled")}
    assert reasons == dict.fromkeys(("endless", "blocked"), "the request around it was cancelled")
    assert names(server.report()["cancelled"]) == ["blocked", "endless"]
    assert names(server.report()["in_thread"]) == ["blocked"]


def test_a_request_that_never_ends_cannot_withhold_the_report(serve: Serve) -> None:
    server = serve(BGX_DRAIN_TIMEOUT="0.1")
    server.add("endless")
    with ThreadPoolExecutor() as pool:
        request = pool.submit(server.client.get, "/hangs")
        server.log("hangs.starts")
        server.send(SIGTERM)
        assert names(server.report()["cancelled"]) == ["endless"]
        server.kill()  # uvicorn itself waits for ever
        with pytest.raises(httpx.HTTPError):
            request.result()


def test_a_server_that_has_served_enough_requests_drains(serve: Serve) -> None:
    server = serve("--limit-max-requests", "2", BGX_DRAIN_TIMEOUT="0.1")
    server.add("endless", detached=True)  # the second request
    assert server.end() == 0
    assert names(server.report()["cancelled"]) == ["endless"]


# Without a lifespan.


@pytest.mark.parametrize(("app", "option"), [("app:without_lifespan", "auto"), ("app:app", "off")])
def test_without_a_lifespan_detached_tasks_run_inline_and_uvicorn_waits_for_them(
    serve: Serve, app: str, option: str
) -> None:
    server = serve("--lifespan", option, app=app)
    server.add("held", detached=True)
    server.log("held.starts")
    server.send(SIGTERM)
    server.line("Waiting for background tasks")
    server.release()
    assert server.end() == ENDED_BY_SIGTERM
    assert server.logged("task.succeeded", task="held")
    assert len(server.logged("bgx.no_lifespan")) == 1


def test_a_failed_startup_ends_the_server_as_ever(tmp_path: Path) -> None:
    server = Server(uvicorn(), tmp_path, FAIL_AT_STARTUP="1")
    try:
        server.line("the database is away")
        assert server.end() == 3
        assert not server.logged("bgx.started")
        assert not server.logged("bgx.drained")
    finally:
        server.kill()
